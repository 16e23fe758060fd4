// Draws maps of networks and of layers, in which similar ones are close (classical scaling).

const MARK = 12; // size of a point, and of the letters of its name, in pixels
const NAME_SIZE = 11;

// Places names of points where they cover neither points nor other names: [{ text, position }], without text if there is
// no room. Points with fewer neighbours come first.
function placeNames(names, x, y, { width, height, margin, xaxis, yaxis }) {
  const pixel = (value, [low, high], length) => ((value - low) / (high - low)) * length;
  const [wide, tall] = [width - margin.l - margin.r, height - margin.t - margin.b];
  const points = names.map((_, k) => ({ x: pixel(x[k], xaxis.range, wide), y: tall - pixel(y[k], yaxis.range, tall) }));
  const taken = points.map((at) => ({ left: at.x - MARK / 2, right: at.x + MARK / 2, top: at.y - MARK / 2, bottom: at.y + MARK / 2 }));
  const overlaps = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const near = points.map((at) => points.filter((other) => Math.hypot(other.x - at.x, other.y - at.y) < 60).length);
  const placed = names.map(() => ({ text: "", position: "top center" }));
  for (const k of [...names.keys()].toSorted((a, b) => near[a] - near[b])) {
    const [long, high, gap] = [widthOf(names[k], NAME_SIZE), NAME_SIZE + 2, MARK / 2 + 2];
    const at = points[k];
    const boxes = {
      "middle right": { left: at.x + gap, top: at.y - high / 2 },
      "middle left": { left: at.x - gap - long, top: at.y - high / 2 },
      "top center": { left: at.x - long / 2, top: at.y - gap - high },
      "bottom center": { left: at.x - long / 2, top: at.y + gap },
    };
    for (const [position, { left, top }] of Object.entries(boxes)) {
      const box = { left, top, right: left + long, bottom: top + high };
      if (left < 2 || box.right > wide - 2 || top < 0 || box.bottom > tall || taken.some((other) => overlaps(box, other))) continue;
      taken.push(box);
      placed[k] = { text: names[k], position };
      break;
    }
  }
  return placed;
}

const AXES = [["0 1", "1 and 2"], ["0 2", "1 and 3"], ["1 2", "2 and 3"], ["depth", "depth and 1"]];

class Maps {
  constructor(page) {
    this.page = page;
    this.axes = AXES[0][0];
  }

  get families() {
    return [...new Set(this.page.part.coords.family)];
  }

  style(family) {
    const k = this.families.indexOf(family);
    const colours = lineColours();
    return { color: colours[k % colours.length], symbol: SYMBOLS[k % SYMBOLS.length], dash: DASHES[Math.floor(k / colours.length) % DASHES.length] };
  }

  draw() {
    this.networks();
    this.layers();
  }

  networks() {
    const { part, measure } = this.page;
    const { map } = part.measure(measure);
    const box = byId("models-map");
    if (map === null) return;
    const { model, family } = part.coords;
    const axes = part.variables.map_coordinates.shape[2];
    const place = (axis) => part.select("map_coordinates", { map, axis });
    const [x, y] = [place(0), axes > 1 ? place(1) : place(0).map(() => 0)];
    const clusters = part.select("cluster", { map });
    const { chosen } = this.page;
    const square = this.frame(box, x, y);
    const labels = shortenAll(this.families);
    const names = placeNames(shortenAll(model, square.width < 480 ? 18 : 26), x, y, square);
    const traces = this.families.map((label, f) => {
      const members = model.map((_, k) => k).filter((k) => family[k] === label);
      const { color, symbol } = this.style(label);
      return {
        type: "scatter", mode: "markers+text", name: escapeMarkup(labels[f]), x: members.map((k) => x[k]), y: members.map((k) => y[k]), customdata: members.map((k) => model[k]),
        text: members.map((k) => escapeMarkup(names[k].text)), textposition: members.map((k) => names[k].position), textfont: { size: NAME_SIZE, color: cssVariable("ink") }, cliponaxis: false,
        hovertext: members.map((k) => `${escapeMarkup(model[k])}<br>${escapeMarkup(label)}${clusters.length ? `, cluster ${clusters[k] + 1}` : ""}`), hoverinfo: "text",
        selectedpoints: chosen.size ? members.map((k, i) => (chosen.has(model[k]) ? i : -1)).filter((i) => i >= 0) : null,
        unselected: { marker: { opacity: 0.3 } },
        marker: { color, symbol, size: MARK, line: { color: cssVariable("ground"), width: 1 } },
      };
    });
    const unnamed = names.filter(({ text }) => !text).length;
    byId("maps-note").textContent = [part.maps[map].note, unnamed && `${unnamed} of ${model.length} points have no room for a name: point at them to read it.`].filter(Boolean).join(" ");
    Plotly.react(box, traces, layoutOf({
      ...square, dragmode: "lasso", selectionrevision: 1,
      xaxis: { ...square.xaxis, title: { text: part.maps[map].axes[0] } }, yaxis: { ...square.yaxis, title: { text: part.maps[map].axes[1] ?? "" } },
    }), { ...CONFIG, modeBarButtons: [["lasso2d", "select2d", ...CONFIG.modeBarButtons[0]]], displayModeBar: square.width >= 480 }); // it would cover the legend
    if (!this.listening) {
      this.listening = true;
      box.on("plotly_selected", (event) => event && this.choose(event.points.map((point) => point.customdata)));
      box.on("plotly_deselect", () => this.choose([]));
      box.on("plotly_click", ({ points }) => this.toggle(points[0].customdata));
    }
    this.chips(model);
    offerTable(box.parentElement, () => table(
      ["Network", "Family", "Cluster", "Axis 1", "Axis 2"],
      model.map((name, k) => [name, family[k], clusters.length ? String(clusters[k] + 1) : MISSING, fixed(x[k]), fixed(y[k])]), `Places of networks (${map})`, 3));
  }

  frame(box, x, y) {
    const width = Math.max(box.clientWidth, 240);
    const middle = ([low, high]) => (low + high) / 2;
    const [across, up] = [extremes(x), extremes(y)];
    const margin = { l: 56, r: 12, t: 34, b: 48 };
    const height = Math.min(width * 0.82, 470);
    const ratio = (width - 68) / (height - 82);
    const half = Math.max((across[1] - across[0]) / ratio, up[1] - up[0], 0.02) * 0.58;
    return {
      width, height, margin,
      legend: { orientation: "h", y: 1.01, yanchor: "bottom", x: 0 },
      showlegend: this.families.length <= 12, // of more it would cover the figure; points tell their family
      xaxis: { range: [middle(across) - half * ratio, middle(across) + half * ratio] },
      yaxis: { range: [middle(up) - half, middle(up) + half] },
    };
  }

  choose(names) {
    this.page.state.set({ chosen: [...new Set(names)].toSorted().join("\0") });
  }

  toggle(name) {
    const { chosen } = this.page;
    this.choose(chosen.has(name) ? [...chosen].filter((model) => model !== name) : [...chosen, name]);
  }

  chips(models) {
    const { chosen } = this.page;
    const box = byId("chosen");
    const old = [...box.querySelectorAll("button")];
    if (old.map((button) => button.textContent).join("\0") === models.join("\0")) {
      old.forEach((button) => button.setAttribute("aria-pressed", chosen.has(button.textContent)));
      return;
    }
    old.forEach((button) => button.remove());
    box.append(...models.map((name) => element("button", { type: "button", "aria-pressed": String(chosen.has(name)), onclick: () => this.toggle(name) }, name)));
  }

  layers() {
    const { part } = this.page;
    const box = byId("layers-map");
    const deep = part.runs.a.flatMap((run) => run.depths);
    const place = (axis) => part.select("layer_coordinates", { layer_axis: axis });
    const [x, y] = this.axes === "depth" ? [deep, place(0)] : this.axes.split(" ").map((axis) => place(Number(axis)));
    const seen = new Set();
    const labels = new Map(this.families.map((family, f) => [family, shortenAll(this.families)[f]]));
    const traces = part.runs.a.map((run) => {
      const family = part.coords.family[part.coords.model.indexOf(run.model)];
      const { color, symbol, dash } = this.style(family);
      const layers = [...Array(run.count).keys()].map((k) => run.first + k);
      const first = !seen.has(family);
      seen.add(family);
      return {
        type: "scatter", mode: "lines+markers", name: escapeMarkup(labels.get(family)), legendgroup: family, showlegend: first, x: layers.map((k) => x[k]), y: layers.map((k) => y[k]),
        text: layers.map((k) => `${escapeMarkup(run.model)}<br>${escapeMarkup(part.sides.a.layers[k])}, depth ${fixed(deep[k], 2)}`), hoverinfo: "text",
        line: { color: withAlpha(color, 0.55), width: 1.4, dash }, marker: { color, symbol, size: layers.map((k) => 5 + 7 * deep[k]), opacity: 0.9 },
      };
    });
    const square = this.frame(box, x, y);
    const [across, up] = this.axes === "depth" ? ["relative depth", "axis 1"] : this.axes.split(" ").map((axis) => `axis ${Number(axis) + 1}`);
    if (this.axes === "depth") {
      const [low, high] = extremes(y);
      square.xaxis.range = [-0.05, 1.05];
      square.yaxis.range = [low - 0.08 * (high - low), high + 0.08 * (high - low)];
    }
    Plotly.react(box, traces, layoutOf({
      ...square, dragmode: "pan", xaxis: { ...square.xaxis, title: { text: across } }, yaxis: { ...square.yaxis, title: { text: up } },
    }), { ...CONFIG, displayModeBar: square.width >= 480 });
    offerChoices(byId("axes"), "axes", AXES, this.axes, (axes) => {
      this.axes = axes;
      this.layers();
    });
    offerTable(box.parentElement, () => table(
      ["Layer", "Depth", "Axis 1", "Axis 2", "Axis 3"],
      part.sides.a.layers.map((layer, k) => [`${part.sides.a.models[k]}/${layer}`, fixed(deep[k], 2), ...[0, 1, 2].map((axis) => fixed(place(axis)[k]))]),
      "Places of layers (cka); larger marks are deeper layers"));
  }
}
