// Draws the value of the axis at which every layer has settled, by depth, with a line for every run.

class Settling {
  constructor(page) {
    this.page = page;
  }

  draw() {
    const { part, measure } = this.page;
    const box = byId("convergence");
    const known = part.select("settled", { measure }).some(Number.isFinite);
    byId("settling").hidden = !known;
    if (!known) return;
    byId("settling-note").textContent = `Value of ${part.axis} from which on the similarity of a layer with the last point of its run stays above ${part.settled_at} of the way there. Bands are 95 % intervals over ${this.page.part.samples}. A line that rises means that lower layers settle first.`;
    const colours = lineColours();
    const traces = part.runs.flatMap(({ name, label }, r) => {
      const at = { measure, one_run: name };
      const [y, low, high] = [0, 1, 2].map((end) => part.select("settled_place", { ...at, end }));
      return lineWithin({
        x: part.depths, y, low, high, colour: colours[r % colours.length], name: label, marker: { symbol: SYMBOLS[r % SYMBOLS.length], size: 8, color: colours[r % colours.length] },
        text: part.layers.map((layer, k) => [`${part.layers_title} ${layer}`, label, `settled at ${part.axis} ${this.value(at, k)}`].filter(Boolean)),
      });
    });
    const { axis, marks } = part.axisOf(part.settled_ticks, "y");
    Plotly.react(box, traces, layoutOf({
      width: Math.min(Math.max(box.clientWidth, 240), 760), height: 380, dragmode: false, hovermode: "closest", showlegend: part.runs.length > 1, margin: { l: 64, r: 12, t: 28, b: 46 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, xaxis: { title: { text: "relative depth of the layer" }, range: [-0.04, 1.04], zeroline: false }, yaxis: axis, annotations: marks,
    }), { ...CONFIG, displayModeBar: false });
    offerTable(box.parentElement, () => table(
      [part.layers_title, "Depth", ...part.runs.map(({ label }) => label || "Settled")],
      part.layers.map((layer, k) => [layer, fixed(part.depths[k], 2), ...part.runs.map(({ name }) => this.value({ measure, one_run: name }, k))]), `${part.axis} at which layers have settled`));
  }

  value(at, layer) {
    const [value, low, high] = ["settled", "settled_low", "settled_high"].map((name) => fourDigits(this.page.part.scalar(name, { ...at, layer })));
    return low === MISSING ? value : `${value} (${low} to ${high})`;
  }
}

// Four digits, as in the tables of the terminal.
const fourDigits = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(4))) : MISSING);
