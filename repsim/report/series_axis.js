// Draws similarity along the axis: of every layer as lines and as a heatmap, and of whole networks.

const MOST_NAMED = 14; // layers that a legend names

class SeriesAxis {
  constructor(page) {
    this.page = page;
    this.byStep = new Heatmap(byId("by-step"), {
      describe: (row, column) => this.describe(row, page.points[column]),
      choose: (_, column) => page.state.set({ point: page.points[column] }),
    });
  }

  get variable() {
    return this.page.view === "calibrated" ? "calibrated" : "similarity";
  }

  draw() {
    const { part } = this.page;
    byId("along-title").textContent = `Along ${part.axis}`;
    byId("along-note").textContent = `Similarity of matching layers with ${this.page.comparedWith}. The deeper a layer, the brighter its line; bands are 95 % intervals over ${this.page.part.samples}. Click a point to see its layers above.`;
    this.trajectories();
    this.table();
  }

  trajectories() {
    const { part, measure, comparison, points, run } = this.page;
    const box = byId("trajectories");
    const x = points.map((k) => part.points[k].place);
    const values = (name, layer) => points.map((k) => part.scalar(name, { measure, comparison, point: k, layer }));
    const none = points.map(() => NaN);
    const calibrated = this.variable === "calibrated";
    const colours = this.page.colours;
    const traces = part.layers.flatMap((layer, k) => lineWithin({
      x, y: values(this.variable, k), low: calibrated ? none : values("similarity_low", k), high: calibrated ? none : values("similarity_high", k),
      colour: colours[k], name: layer, text: points.map((point) => this.describe(k, point)),
    }));
    const { axis, marks } = part.axisOf(part.ticks);
    const named = part.layers.length <= MOST_NAMED;
    Plotly.react(box, traces, layoutOf({
      width: Math.max(box.clientWidth, 240), height: 420, dragmode: false, hovermode: "closest", showlegend: named,
      margin: { l: 54, r: 12, t: 16, b: 46 }, legend: { traceorder: "reversed", font: { size: 11 } },
      xaxis: axis, yaxis: { title: { text: escapeMarkup(calibrated ? `${measure}, calibrated` : measure) }, zeroline: false },
      annotations: marks, shapes: this.cursor(),
    }), { ...CONFIG, displayModeBar: false });
    this.listen(box);
    offerTable(box.parentElement, () => table(
      [part.layers_title, ...points.map((k) => `${part.axis} ${part.points[k].text}`)],
      part.layers.map((layer, k) => [layer, ...values(this.variable, k).map((value) => fixed(value))]), `${measure}, ${this.page.view}${run ? `, ${this.page.runLabel}` : ""}`));
  }

  // Marks the point that the slider shows.
  cursor() {
    const { place } = this.page.part.points[this.page.point];
    return [{ type: "line", x0: place, x1: place, y0: 0, y1: 1, yref: "paper", line: { color: cssVariable("accent"), width: 1.2, dash: "dot" } }];
  }

  moveCursor() {
    for (const id of ["trajectories", "trend"]) {
      if (byId(id).data) Plotly.relayout(byId(id), { shapes: this.cursor() });
    }
  }

  listen(box) {
    if (box.listening) return;
    box.listening = true;
    box.on("plotly_click", ({ points: [{ customdata, pointIndex }] }) => {
      const point = customdata ?? this.page.points[pointIndex];
      if (point !== undefined) this.page.state.set({ point });
    });
  }

  table() {
    const { part, measure, comparison, points } = this.page;
    const values = Float64Array.from(part.layers.flatMap((_, layer) => points.map((point) => part.scalar(this.variable, { measure, comparison, point, layer }))));
    this.byStep.draw({
      values, rows: part.layers.length, columns: points.length, ...part.scale(measure, this.page.view),
      up: { side: "up", count: part.layers.length, names: part.layers }, across: { side: "across", count: points.length, names: points.map((k) => part.points[k].text) },
      lines: linesBetween(part.stages, [], { color: "rgba(255,255,255,.6)", width: 0.8 }),
      label: `${measure} of layers, upwards, by ${part.axis}, to the right, with ${this.page.comparedWith}. Arrow keys move between cells; Enter shows the layers of that point.`,
    });
  }

  describe(layer, point) {
    const { part, measure, comparison } = this.page;
    const at = { measure, comparison, point, layer };
    const range = interval(part.scalar("similarity_low", at), part.scalar("similarity_high", at));
    const calibrated = part.scalar("calibrated", at);
    return [
      `${part.layers_title} ${part.layers[layer]}, ${part.axis} ${part.points[point].text}`, `${measure} ${fixed(part.scalar("similarity", at))}`,
      range && `95 % interval ${range}`, Number.isFinite(calibrated) ? `calibrated ${fixed(calibrated)}` : ""].filter(Boolean);
  }

  // Draws the mean over layers of every network, of all runs.
  networks() {
    const { part, measure, comparison } = this.page;
    const box = byId("trend");
    const colours = lineColours();
    const traces = part.runs.map(({ name, label }, r) => {
      const points = part.pointsOf(name);
      const at = (variable) => points.map((point) => part.scalar(variable, { measure, comparison, point }));
      const [y, low, high] = ["network", "network_low", "network_high"].map(at);
      const error = (ends, sign) => y.map((value, k) => (Number.isFinite(ends[k]) ? sign * (ends[k] - value) : 0));
      return {
        type: "scatter", mode: "markers", x: points.map((k) => part.points[k].place), y, name: escapeMarkup(label), customdata: points,
        marker: { symbol: points.map((k) => (comparison === "reference" && part.points[k].itself ? `${SYMBOLS[r % SYMBOLS.length]}-open` : SYMBOLS[r % SYMBOLS.length])), size: 8, color: colours[r % colours.length] },
        error_y: { type: "data", array: error(high, 1), arrayminus: error(low, -1), thickness: 1.2, width: 0, color: colours[r % colours.length] },
        hoverinfo: "text", text: points.map((point) => [part.points[point].name, `${part.axis} ${part.points[point].text}`, `${measure} ${part.text("network", { measure, comparison, point })}`].map(escapeMarkup).join("<br>")),
      };
    });
    const { axis, marks } = part.axisOf(part.ticks);
    Plotly.react(box, traces, layoutOf({
      width: Math.max(box.clientWidth, 240), height: 360, dragmode: false, hovermode: "closest", showlegend: part.runs.length > 1, margin: { l: 54, r: 12, t: 28, b: 46 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, xaxis: axis, yaxis: { title: { text: `${escapeMarkup(measure)}, mean over layers` }, zeroline: false }, annotations: marks, shapes: this.cursor(),
    }), { ...CONFIG, displayModeBar: false });
    this.listen(box);
    const open = comparison === "reference" && part.points.some(({ itself }) => itself) ? " Open marks are compared with themselves and are no part of trends." : "";
    byId("networks-note").textContent = `Similarity with ${this.page.comparedWith}, mean over layers; bars are 95 % intervals over ${this.page.part.samples}.${open}`;
  }
}
