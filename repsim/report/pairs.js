// Shows pairs of networks: one in detail, all as a table and as a forest plot.

class Pairs {
  constructor(page) {
    this.page = page;
    this.order = { key: "index", down: true };
  }

  get part() {
    return this.page.part;
  }

  number(name, pair, measure = this.page.measure) {
    return this.part.scalar(name, { measure, pair }) ?? NaN;
  }

  detail() {
    const { part } = this;
    const { pair, measure } = this.page;
    byId("details").hidden = !part.isStudy || !pair;
    if (byId("details").hidden) return;
    const at = (name) => this.number(name, pair.name);
    const within = at("p_index_within_classes");
    byId("details-title").textContent = `${pair.a} × ${pair.b} (${pair.relation})`;
    byId("details-facts").replaceChildren(
      tile(`Index (${measure})`, fixed(at("index")), interval(at("index_low"), at("index_high")), true),
      tile("Split half", fixed(at("split_half")), "match from one half of the samples, value from the other"),
      tile("p (index)", probability(at("p_index")), Number.isFinite(at("p_index_holm")) ? `Holm ${probability(at("p_index_holm"))}; ${at("permuted")} permutations` : ""),
      tile("Control", fixed(at("control")), part.scalar("control_name", { measure, pair: pair.name }) || part.uncontrolled),
      tile("Learned effect", fixed(at("learned")), Number.isFinite(at("learned")) ? interval(at("learned_low"), at("learned_high")) : "needs a control"),
      tile("Calibrated index", fixed(at("calibrated_index")), Number.isFinite(at("threshold_index")) ? `above ${fixed(at("threshold_index"))}` : ""),
      tile("Largest of any two layers", fixed(at("largest")), Number.isFinite(at("calibrated_largest")) ? `calibrated ${fixed(at("calibrated_largest"))}` : ""),
      tile("Warp", fixed(at("warp")), "how much deeper the match is in the second network"),
      ...(Number.isFinite(within) ? [tile("p within classes", probability(within), `calibrated ${fixed(at("calibrated_index_within_classes"))}`)] : []),
    );
    const rows = part.measures.map(({ name }) => {
      const number = (variable) => this.number(variable, pair.name, name);
      const spread = (variable) => valueWithin(number(variable), number(`${variable}_low`), number(`${variable}_high`));
      return [
        name, spread("index"), fixed(number("split_half")), fixed(number("calibrated_index")), probability(number("p_index_holm")),
        fixed(number("control")), spread("learned")];
    });
    byId("details-measures").replaceChildren(table(
      ["Measure", "Index (95 %)", "Split half", "Calibrated", "p (Holm)", "Control", "Learned (95 %)"], rows, "This pair under every measure"));
  }

  // The table

  get columns() {
    const at = (name) => (pair) => this.number(name, pair.name);
    const spread = (name) => (_, pair) => valueWithin(at(name)(pair), at(`${name}_low`)(pair), at(`${name}_high`)(pair));
    return [
      { key: "name", label: "Pair", value: (pair) => pair.name },
      { key: "relation", label: "Relation", value: (pair) => pair.relation, show: (text) => text },
      { key: "index", label: "Index (95 %)", value: at("index"), show: spread("index") },
      { key: "split_half", label: "Split half", value: at("split_half"), show: (value) => fixed(value) },
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
    const rows = this.sorted().map((pair) => [
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
    const pairsTable = table(heads, rows, `${this.page.measure}, ${rows.length} pairs`, 2);
    for (const button of heads.filter((head) => head.parentElement)) {
      const own = button.dataset.key === this.order.key;
      button.parentElement.setAttribute("aria-sort", own ? (this.order.down ? "descending" : "ascending") : "none");
    }
    box.replaceChildren(pairsTable);
    this.mark();
  }

  // Marks the rows of the current pair and of the chosen networks.
  mark() {
    const chosen = this.page.chosen;
    byId("pairs-table").querySelectorAll("tbody tr").forEach((row) => {
      const pair = this.part.pairs.find(({ name }) => name === row.cells[0].textContent);
      row.classList.toggle("chosen", chosen.size > 0 && chosen.has(pair.a) && (chosen.size === 1 || chosen.has(pair.b)));
      if (chosen.size === 1 && chosen.has(pair.b)) row.classList.add("chosen");
      row.classList.toggle("current", pair.name === this.page.pair?.name);
    });
  }

  // The forest

  forest() {
    const { part } = this;
    byId("pairs-note").textContent = part.measure(this.page.measure).pairs_note;
    const box = byId("forest");
    const colours = lineColours();
    const ordered = part.relations.flatMap((relation) => part.pairs.filter((pair) => pair.relation === relation)
      .sort((a, b) => (this.number("index", b.name) || 0) - (this.number("index", a.name) || 0)));
    const at = (name, pairs) => pairs.map((pair) => this.number(name, pair.name));
    const y = (pairs) => pairs.map((pair) => -ordered.indexOf(pair));
    const shown = (pair) => escapeMarkup([
      pair.name, `${this.page.measure} ${fixed(this.number("index", pair.name))}`,
      interval(this.number("index_low", pair.name), this.number("index_high", pair.name)) && `95 % interval ${interval(this.number("index_low", pair.name), this.number("index_high", pair.name))}`,
      Number.isFinite(this.number("control", pair.name)) ? `control ${fixed(this.number("control", pair.name))} (${part.scalar("control_name", { measure: this.page.measure, pair: pair.name })})` : "",
    ].filter(Boolean).join("\n")).replace(/\n/g, "<br>");
    const traces = part.relations.flatMap((relation) => {
      const k = part.coords.kind_of_pair.indexOf(relation);
      const pairs = ordered.filter((pair) => pair.relation === relation);
      const [value, low, high, control] = ["index", "index_low", "index_high", "control"].map((name) => at(name, pairs));
      const both = pairs.flatMap((_, i) => (Number.isFinite(control[i]) ? [[value[i], y(pairs)[i]], [control[i], y(pairs)[i]], [null, null]] : []));
      return [
        { type: "scatter", mode: "lines", x: both.map(([x]) => x), y: both.map(([, v]) => v), line: { color: withAlpha(colours[k], 0.45), width: 1.5 }, hoverinfo: "skip", showlegend: false },
        {
          type: "scatter", mode: "markers", name: relation, x: value, y: y(pairs), customdata: pairs.map(({ name }) => name), text: pairs.map(shown), hoverinfo: "text",
          marker: { color: colours[k], symbol: SYMBOLS[k], size: 9 },
          error_x: { type: "data", symmetric: false, array: high.map((v, i) => v - value[i]), arrayminus: low.map((v, i) => value[i] - v), color: colours[k], thickness: 2, width: 4 },
        },
        { type: "scatter", mode: "markers", x: control, y: y(pairs), hoverinfo: "skip", showlegend: false, marker: { color: colours[k], symbol: `${SYMBOLS[k]}-open`, size: 9, line: { width: 1.6 } } },
      ];
    });
    const width = Math.max(box.clientWidth, 260);
    const most = width < 640 ? 24 : 44;
    const left = 12 + Math.max(...ordered.map(({ name }) => widthOf(shorten(name, most), 11)));
    Plotly.react(box, traces, layoutOf({
      width,
      height: 62 + 19 * ordered.length + 24,
      margin: { l: left, r: 16, t: 30, b: 46 },
      legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0, font: { color: cssVariable("ink") } },
      xaxis: { title: { text: escapeMarkup(this.page.measure) }, zeroline: true },
      yaxis: { tickvals: ordered.map((_, i) => -i), ticktext: ordered.map(({ name }) => escapeMarkup(shorten(name, most))), range: [-ordered.length + 0.4, 0.6], showgrid: false, tickfont: { size: 11 }, zeroline: false },
      dragmode: false,
    }), { ...CONFIG, displayModeBar: false });
    if (this.listening) return;
    this.listening = true;
    box.on("plotly_click", ({ points }) => points[0].customdata && this.page.state.set({ pair: points[0].customdata }));
  }
}
