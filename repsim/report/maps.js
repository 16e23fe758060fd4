// Draws maps of networks and of layers, in which similar ones are close (classical scaling).

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
    byId("maps-note").textContent = part.maps[map].note;
    const { chosen } = this.page;
    const traces = this.families.map((label) => {
      const members = model.map((_, k) => k).filter((k) => family[k] === label);
      const { color, symbol } = this.style(label);
      return {
        type: "scatter", mode: "markers", name: escapeMarkup(shorten(label)), x: members.map((k) => x[k]), y: members.map((k) => y[k]), customdata: members.map((k) => model[k]),
        text: members.map((k) => `${escapeMarkup(model[k])}<br>${escapeMarkup(label)}${clusters.length ? `, cluster ${clusters[k] + 1}` : ""}`), hoverinfo: "text",
        selectedpoints: chosen.size ? members.map((k, i) => (chosen.has(model[k]) ? i : -1)).filter((i) => i >= 0) : null,
        unselected: { marker: { opacity: 0.3 } },
        marker: { color, symbol, size: 14, line: { color: cssVariable("ground"), width: 1 } },
      };
    });
    const square = this.frame(box, x, y);
    Plotly.react(box, traces, layoutOf({
      ...square, dragmode: "lasso", selectionrevision: 1,
      xaxis: { ...square.xaxis, title: { text: part.maps[map].axes[0] } }, yaxis: { ...square.yaxis, title: { text: part.maps[map].axes[1] ?? "" } },
    }), { ...CONFIG, modeBarButtons: [["lasso2d", "select2d", ...CONFIG.modeBarButtons[0]]], displayModeBar: true });
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
      showlegend: true,
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
    const traces = part.runs.a.map((run) => {
      const family = part.coords.family[part.coords.model.indexOf(run.model)];
      const { color, symbol, dash } = this.style(family);
      const layers = [...Array(run.count).keys()].map((k) => run.first + k);
      const first = !seen.has(family);
      seen.add(family);
      return {
        type: "scatter", mode: "lines+markers", name: escapeMarkup(shorten(family)), legendgroup: family, showlegend: first, x: layers.map((k) => x[k]), y: layers.map((k) => y[k]),
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
    }), { ...CONFIG, displayModeBar: true });
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
