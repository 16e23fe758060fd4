// Shows pairs of networks: one in detail, all as a table and as a forest plot.

const CONTROL_SYMBOLS = ["diamond-open", "triangle-left-open", "triangle-right-open"];

const MOST_LISTED = 100; // of more pairs, the table shows the first ones until more are asked for
const FIRST_LISTED = 20;

// Shortens the names of pairs to `most` letters so that different pairs stay different: both networks of each.
function shortenPairs(pairs, most) {
  if (pairs.every(({ name }) => name.length <= most)) return pairs.map(({ name }) => name);
  const models = [...new Set(pairs.flatMap(({ a, b }) => [a, b]))];
  const short = new Map(shortenAll(models, Math.floor((most - 3) / 2)).map((text, k) => [models[k], text]));
  return pairs.map(({ a, b }) => `${short.get(a)} x ${short.get(b)}`);
}

class Pairs {
  constructor(page) {
    this.page = page;
    this.listed = FIRST_LISTED;
    this.order = { key: "value", down: true };
  }

  get part() {
    return this.page.part;
  }

  number(name, pair, measure = this.page.measure) {
    return this.part.scalar(name, { measure, pair }) ?? NaN;
  }

  // Returns the main value of a pair under a measure, or an end of its interval: split half, or else all samples.
  value(pair, end = "", measure = this.page.measure) {
    return this.number(`${this.part.measure(measure).headline}${end}`, pair, measure);
  }

  // Returns the value of all samples if it is not the main one.
  onAll(pair, measure = this.page.measure) {
    return this.part.measure(measure).headline === "index" ? NaN : this.number("index", pair, measure);
  }

  // Returns the names and values of the controls of a pair, as far as they are known.
  controls(pair, measure = this.page.measure) {
    const values = this.part.select("every_control", { measure, pair });
    return this.part.coords.control_pair.map((name, k) => [name, values[k] ?? NaN]).filter(([, value]) => Number.isFinite(value));
  }

  detail() {
    const { part } = this;
    const { pair, measure } = this.page;
    byId("details").hidden = !part.isStudy || !pair;
    if (byId("details").hidden) return;
    const at = (name) => this.number(name, pair.name);
    const within = at("p_index_within_classes");
    byId("details-title").textContent = `${pair.a} × ${pair.b} (${pair.relation})`;
    const controls = this.controls(pair.name).map(([name, value]) => `${name} ${fixed(value)}`);
    const half = part.measure(measure).headline === "split_half";
    byId("details-facts").replaceChildren(
      tile(`${half ? "Split half" : "Index"} (${measure})`, fixed(this.value(pair.name)), interval(this.value(pair.name, "_low"), this.value(pair.name, "_high")), true),
      ...(half ? [tile("Index, all samples", fixed(at("index")), interval(at("index_low"), at("index_high")) || "a maximum, so without an interval")] : []),
      ...(Number.isFinite(at("energy")) ? [tile("In units of energy", fixed(at("energy")), interval(at("energy_low"), at("energy_high")))] : []),
      tile("p (index)", probability(at("p_index")), Number.isFinite(at("p_index_holm")) ? `Holm ${probability(at("p_index_holm"))}; ${at("permuted")} permutations` : ""),
      tile("Strongest control", fixed(at("control")), controls.join("; ") || part.uncontrolled),
      tile("Learned effect", fixed(at("learned")), Number.isFinite(at("learned")) ? interval(at("learned_low"), at("learned_high")) : "needs a control"),
      tile("Calibrated index", fixed(at("calibrated_index")), Number.isFinite(at("threshold_index")) ? `above ${fixed(at("threshold_index"))}` : ""),
      tile("Largest of any two layers", fixed(at("largest")), Number.isFinite(at("calibrated_largest")) ? `calibrated ${fixed(at("calibrated_largest"))}` : ""),
      tile("Warp", fixed(at("warp")), "how much deeper the match is in the second network"),
      ...(Number.isFinite(within) ? [tile("p within classes", probability(within), `calibrated ${fixed(at("calibrated_index_within_classes"))}`)] : []),
    );
    const rows = part.measures.map(({ name }) => {
      const number = (variable) => this.number(variable, pair.name, name);
      const spread = (variable) => valueWithin(number(variable), number(`${variable}_low`), number(`${variable}_high`));
      const main = part.measure(name).headline;
      return [
        name, spread(main), fixed(this.onAll(pair.name, name)), spread("energy"), fixed(number("calibrated_index")), probability(number("p_index_holm")),
        fixed(number("control")), spread("learned")];
    });
    byId("details-measures").replaceChildren(table(
      ["Measure", "Value (95 %)", "All samples", "Units of energy (95 %)", "Calibrated", "p (Holm)", "Control", "Learned (95 %)"], rows, "This pair under every measure"));
  }

  // The table

  get columns() {
    const at = (name) => (pair) => this.number(name, pair.name);
    const half = this.part.measure(this.page.measure).headline === "split_half";
    const spread = (name) => (_, pair) => valueWithin(at(name)(pair), at(`${name}_low`)(pair), at(`${name}_high`)(pair));
    return [
      { key: "name", label: "Pair", value: (pair) => pair.name },
      { key: "relation", label: "Relation", value: (pair) => pair.relation, show: (text) => text },
      { key: "value", label: half ? "Split half (95 %)" : "Index (95 %)", value: (pair) => this.value(pair.name), show: spread(half ? "split_half" : "index") },
      { key: "index", label: "All samples", value: (pair) => this.onAll(pair.name), show: (value) => fixed(value) },
      { key: "energy", label: "Units of energy", value: at("energy"), show: (value) => fixed(value) },
      { key: "calibrated_index", label: "Calibrated", value: at("calibrated_index"), show: (value) => fixed(value) },
      { key: "p_index_holm", label: "p (Holm)", value: at("p_index_holm"), show: probability },
      { key: "control", label: "Control", value: at("control"), show: (value) => fixed(value) },
      { key: "learned", label: "Learned (95 %)", value: at("learned"), show: spread("learned") },
    ];
  }

  sorted() {
    const { key, down } = this.order;
    const { value } = this.columns.find((column) => column.key === key);
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
    const missing = (x) => typeof x === "number" && Number.isNaN(x);
    return this.part.pairs.map((pair) => [value(pair), pair]).sort(([a, first], [b, second]) =>
      missing(a) - missing(b) || (down ? -compare(a, b) : compare(a, b)) || first.name.localeCompare(second.name)).map(([, pair]) => pair);
  }

  list() {
    const box = byId("pairs-table");
    const { columns } = this;
    const count = this.part.pairs.length;
    const { chosen } = this.page;
    const sorted = this.sorted().filter((pair) => count <= MOST_LISTED || !chosen.size || this.isChosen(pair));
    const listed = count <= MOST_LISTED ? sorted : sorted.slice(0, this.listed);
    const rows = listed.map((pair) => [
      element("button", { type: "button", onclick: () => this.page.state.set({ pair: pair.name }) }, pair.name),
      ...columns.slice(1).map(({ value, show }) => show(value(pair), pair)),
    ]);
    const heads = columns.map(({ key, label }, k) => {
      const sort = () => {
        this.order = { key, down: this.order.key === key ? !this.order.down : k > 1 };
        this.list();
        box.querySelector(`thead button[data-key=${key}]`).focus();
      };
      return element("button", { type: "button", "data-key": key, onclick: sort }, label);
    });
    const which = sorted.length < count ? `${sorted.length} of ${count} pairs, those of the chosen networks` : `${count} pairs`;
    const part = listed.length < sorted.length ? `; the first ${listed.length} in the order of the sorted column` : "";
    const pairsTable = table(heads, rows, `${this.page.measure}, ${which}${part}`, 2);
    for (const button of heads.filter((head) => head.parentElement)) {
      const own = button.dataset.key === this.order.key;
      button.parentElement.setAttribute("aria-sort", own ? (this.order.down ? "descending" : "ascending") : "none");
    }
    const more = sorted.length > listed.length && element("button", { type: "button", onclick: () => {
      this.listed += MOST_LISTED;
      this.list();
    } }, `List ${Math.min(MOST_LISTED, sorted.length - listed.length)} more`);
    box.replaceChildren(pairsTable, ...(more ? [more] : []));
    this.mark();
  }

  // Shows the choice of networks: marks their pairs, or lists only them if there are many pairs.
  choose() {
    if (this.part.pairs.length > MOST_LISTED) this.list();
    else this.mark();
  }

  // Returns whether a pair belongs to the chosen networks: it has the only one, or both of its networks are chosen.
  isChosen({ a, b }) {
    const { chosen } = this.page;
    return chosen.size === 1 ? chosen.has(a) || chosen.has(b) : chosen.has(a) && chosen.has(b);
  }

  // Marks the rows of the current pair and of the chosen networks.
  mark() {
    byId("pairs-table").querySelectorAll("tbody tr").forEach((row) => {
      const pair = this.part.pairs[this.part.place("pair", row.cells[0].textContent)];
      row.classList.toggle("chosen", this.isChosen(pair));
      row.classList.toggle("current", pair.name === this.page.pair?.name);
    });
  }

  // The forest

  forest() {
    const { part } = this;
    byId("pairs-note").textContent = [part.measure(this.page.measure).pairs_note, part.drawn_note].filter(Boolean).join(" ");
    const box = byId("forest");
    const colours = lineColours();
    const ordered = part.drawn[part.measures.indexOf(part.measure(this.page.measure))].map((k) => part.pairs[k]);
    const gap = (k) => (ordered.length > part.extremes && part.extremes && k >= part.extremes ? 1 : 0); // a row between the ends
    const places = new Map(ordered.map((pair, k) => [pair, k + gap(k)]));
    const rows = ordered.length + gap(ordered.length);
    const at = (name, pairs) => pairs.map((pair) => this.number(name, pair.name));
    const y = (pairs) => pairs.map((pair) => -places.get(pair));
    const shown = (pair) => {
      const spread = interval(this.value(pair.name, "_low"), this.value(pair.name, "_high"));
      return escapeMarkup([
        pair.name, `${this.page.measure} ${fixed(this.value(pair.name))}`, spread && `95 % interval ${spread}`,
        ...this.controls(pair.name).map(([name, value]) => `control, ${name}: ${fixed(value)}`),
      ].filter(Boolean).join("\n")).replace(/\n/g, "<br>");
    };
    const traces = part.relations.flatMap((relation) => {
      const k = part.coords.kind_of_pair.indexOf(relation);
      const pairs = ordered.filter((pair) => pair.relation === relation);
      const [value, low, high] = ["", "_low", "_high"].map((end) => pairs.map((pair) => this.value(pair.name, end)));
      const control = at("control", pairs);
      const both = pairs.flatMap((_, i) => (Number.isFinite(control[i]) ? [[value[i], y(pairs)[i]], [control[i], y(pairs)[i]], [null, null]] : []));
      return [
        { type: "scatter", mode: "lines", x: both.map(([x]) => x), y: both.map(([, v]) => v), line: { color: withAlpha(colours[k], 0.45), width: 1.5 }, hoverinfo: "skip", showlegend: false },
        {
          type: "scatter", mode: "markers", name: relation, x: value, y: y(pairs), customdata: pairs.map(({ name }) => name), text: pairs.map(shown), hoverinfo: "text",
          marker: { color: colours[k], symbol: SYMBOLS[k], size: 9 },
          error_x: { type: "data", symmetric: false, array: high.map((v, i) => v - value[i]), arrayminus: low.map((v, i) => value[i] - v), color: colours[k], thickness: 2, width: 4 },
        },
      ];
    });
    part.coords.control_pair.forEach((name, k) => { // a triangle points at the network that is trained
      const marks = ordered.flatMap((pair) => this.controls(pair.name).filter(([control]) => control === name).map(([, value]) => [value, pair]));
      if (!marks.length) return;
      traces.push({
        type: "scatter", mode: "markers", name: `control: ${name}`, x: marks.map(([value]) => value), y: y(marks.map(([, pair]) => pair)), hoverinfo: "skip",
        marker: { color: cssVariable("ink"), symbol: CONTROL_SYMBOLS[k], size: 8, line: { width: 1.4 } },
      });
    });
    const width = Math.max(box.clientWidth, 260);
    const most = width < 640 ? 28 : width < 900 ? 44 : 64;
    const names = shortenPairs(ordered, most);
    const left = 12 + Math.max(0, ...names.map((name) => widthOf(name, 11)));
    const entries = traces.filter(({ showlegend }) => showlegend !== false).length;
    const top = 12 + 20 * Math.ceil(entries / Math.max(1, Math.floor((width - left) / 170))); // rows of the legend
    Plotly.react(box, traces, layoutOf({
      width,
      height: top + 32 + 19 * rows + 24,
      margin: { l: left, r: 16, t: top, b: 46 },
      legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0, font: { color: cssVariable("ink") } },
      xaxis: { title: { text: escapeMarkup(this.page.measure) }, zeroline: true },
      shapes: gap(ordered.length) ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: -part.extremes, y1: -part.extremes, line: { color: cssVariable("line"), width: 1 } }] : [],
      yaxis: { tickvals: y(ordered), ticktext: names.map(escapeMarkup), range: [-rows + 0.4, 0.6], showgrid: false, tickfont: { size: 11 }, zeroline: false },
      dragmode: false,
    }), { ...CONFIG, displayModeBar: false });
    if (this.listening) return;
    this.listening = true;
    box.on("plotly_click", ({ points }) => points[0].customdata && this.page.state.set({ pair: points[0].customdata }));
  }
}
