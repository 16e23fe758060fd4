// Draws the shares of representational energy by depth, and the table of ceilings.

class Shares {
  constructor(page) {
    this.page = page;
  }

  draw() {
    const { part } = this.page;
    const states = part.coords.state ?? [];
    const colours = lineColours();
    const box = byId("shares");
    const width = Math.max(box.clientWidth, 240);
    const stacked = width < 640 && states.length > 1;
    byId("depth-note").textContent = part.shares_note;
    const depth = part.coords.depth.map(Number);
    const traces = states.flatMap((state, s) => part.shares.flatMap(({ name: share, label, place }) => {
      const k = place % colours.length;
      const [mid, low, high] = ["share", "share_low", "share_high"].map((name) => part.select(name, { state, share_of: share }));
      const on = { xaxis: s ? "x2" : "x", yaxis: s ? "y2" : "y", type: "scatter", legendgroup: share };
      const band = low.every(Number.isFinite) ? [{
        ...on, x: [...depth, ...depth.toReversed()], y: [...high, ...low.toReversed()], fill: "toself", fillcolor: withAlpha(colours[k], 0.16), line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false,
      }] : [];
      return [...band, {
        ...on, x: depth, y: mid, mode: "lines+markers", name: escapeMarkup(label), showlegend: !s, line: { color: colours[k], width: 2.4, dash: DASHES[k] },
        marker: { symbol: SYMBOLS[k], size: 8, color: colours[k] }, hoverinfo: "text",
        text: depth.map((at, i) => `${escapeMarkup(label)}, ${escapeMarkup(state)}, depth ${fixed(at, 2)}<br>${fixed(mid[i])}${bracketed(low[i], high[i])}`),
      }];
    }));
    const [least, most] = extremes(["share_low", "share_high", "share"].flatMap((name) => part.shares.flatMap((share) => part.select(name, { share_of: share.name }))));
    const range = [Math.min(0, least) - 0.03, Math.max(most, 0.5) + 0.03];
    const domains = states.length < 2 ? [[0, 1]] : stacked ? [[0.56, 1], [0, 0.4]] : [[0, 0.47], [0.53, 1]];
    const axes = Object.fromEntries(states.flatMap((state, s) => {
      const n = s ? "2" : "";
      return [
        [`xaxis${n}`, { title: { text: "relative depth" }, range: [-0.03, 1.03], anchor: `y${n}`, ...(stacked ? {} : { domain: domains[s] }), zeroline: false }],
        [`yaxis${n}`, { range, anchor: `x${n}`, ...(stacked ? { domain: domains[s] } : {}), title: { text: s && !stacked ? "" : "share" } }],
      ];
    }));
    Plotly.react(box, traces, layoutOf({
      ...axes, width, height: stacked ? 680 : 380, dragmode: false, margin: { l: 54, r: 12, t: 58, b: 46 },
      legend: { orientation: "h", y: 1 + 26 / (stacked ? 576 : 276), yanchor: "bottom", x: 0 },
      annotations: states.map((state, s) => ({
        text: `<b>${escapeMarkup(state)}</b>`, xref: stacked ? "paper" : `x${s ? "2" : ""} domain`, x: 0, xanchor: "left", yref: `y${s ? "2" : ""} domain`, y: 1.02, yanchor: "bottom", showarrow: false, font: { size: 13, color: cssVariable("ink") },
      })),
    }), { ...CONFIG, displayModeBar: false });
    offerTable(box.parentElement, () => table(
      ["Share, at depth", ...depth.map((at) => fixed(at, 2))],
      states.flatMap((state) => part.shares.map((share) => [`${share.label}, ${state}`, ...part.select("share", { state, share_of: share.name }).map((v) => fixed(v))])),
      "Shares by relative depth"));
    this.ceilings();
  }

  ceilings() {
    const { part } = this.page;
    const kernel = this.page.kernel;
    const { note, rows } = part.ceilings[kernel];
    byId("ceilings").replaceChildren(...(rows.length ? [
      element("h3", {}, "Similarity relative to its ceiling"),
      element("p", { class: "note" }, note),
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Ceilings" },
        table(["Families", "Across", "Ceiling", "Ratio", "95 % interval"], rows, `${kernel}, mean over matching layers`)),
    ] : []));
  }
}
