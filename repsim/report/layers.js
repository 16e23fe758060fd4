// Draws the heatmaps of all layers of all networks, and of one pair with its best match.

const VIEWS = [["value", "value"], ["calibrated", "calibrated"], ["z", "z above chance"]];
const DIRECTIONS = ["a to b", "b to a"]; // labels of the directions of a match in a study

class Layers {
  constructor(page) {
    this.page = page;
    this.all = new Heatmap(byId("all-map"), {
      describe: (row, column) => (this.part.large ? this.describePair(row, column) : this.describe(row, column)),
      choose: (row, column) => {
        const { up, across } = this.networks ?? {};
        if (this.part.large) this.chosen(this.part.runs.a[up[row]].first, this.part.runs.b[across[column]].first);
        else this.chosen(row, column);
      },
    });
    this.one = new Heatmap(byId("one-map"), {
      describe: (row, column) => this.describe(...this.toAllLayers(row, column)),
      choose: (row, column) => this.follow(row, column),
    });
    byId("step").addEventListener("input", () => this.step());
    byId("csv").addEventListener("click", () => this.download());
    this.direction = DIRECTIONS[0];
  }

  get part() {
    return this.page.part;
  }

  get pair() {
    return this.page.pair;
  }

  drawAll() {
    const { part, measure, view } = this.page;
    byId("all").hidden = !part.several && Boolean(this.pair); // the other heatmap shows a single pair completely
    byId("rounding").textContent = part.rounding ?? "";
    if (byId("all").hidden) return;
    if (part.large) this.drawNetworks();
    else this.drawLayers();
    byId("all-note").textContent = part.large ? part.overview_notes[part.measures.findIndex(({ name }) => name === measure)][view] : "";
  }

  drawLayers() {
    const { part, measure, view, scale } = this.page;
    const between = (side) => part.runs[side].slice(1).map((run) => run.first);
    const names = (side) => ({
      side, count: part.sides[side].layers.length, ticks: part.runs[side].map((run) => run.model),
      at: part.runs[side].map((run) => run.first + (run.count - 1) / 2),
    });
    this.all.draw({
      ...scale, values: part.matrix(view, measure), rows: part.rows, columns: part.columns, up: names("a"), across: names("b"),
      lines: linesBetween(between("a"), between("b"), { color: "rgba(255,255,255,.85)", width: 1 }),
      label: `${view} of ${measure} of all layers of all networks. Arrow keys move between cells; Enter shows the two networks of a cell.`,
    });
    offerTable(byId("all"), () => this.asTable(0, part.rows, 0, part.columns, true));
  }

  // Draws one cell for each pair of networks in the order of the dendrogram, or with lines between families.
  drawNetworks() {
    const { part, measure, view, scale } = this.page;
    this.networks = part.overviewOf(view, measure);
    const { values, tree } = this.networks;
    const runs = { a: this.networks.up.map((k) => part.runs.a[k]), b: this.networks.across.map((k) => part.runs.b[k]) };
    const [rows, columns] = [runs.a.length, runs.b.length];
    const family = ({ model }) => part.coords.family?.[part.place("model", model)];
    const between = (side) => runs[side].map((run, k, all) => (k && family(run) !== family(all[k - 1]) ? k : 0)).filter(Boolean);
    const lines = (side) => (!tree && between(side).length <= runs[side].length / 2 ? between(side) : []);
    const names = (side, place) => ({ side: place, count: runs[side].length, names: runs[side].map(({ model }) => model) });
    this.all.draw({
      ...scale, values, rows, columns, up: names("a", "up"), across: names("b", "across"), tree,
      lines: linesBetween(lines("a"), lines("b"), { color: "rgba(255,255,255,.6)", width: 0.8 }),
      label: `${view} of ${measure} of all pairs of networks. Arrow keys move between cells; Enter shows the layers of the two networks of a cell.`,
    });
    offerTable(byId("all"), () => table(["Network", ...names("b").names], names("a").names.map((model, i) => [
      model, ...Array.from(values.subarray(i * columns, (i + 1) * columns), (value) => fixed(value))]), `${measure}, ${view}`));
  }

  // Returns the rows and columns of the pair.
  get block() {
    const [up, across] = [this.part.run("a", this.pair.a), this.part.run("b", this.pair.b)];
    return { up, across, rows: up.count, columns: across.count };
  }

  toAllLayers(row, column) {
    return [this.block.up.first + row, this.block.across.first + column];
  }

  // Returns what is known of two layers: the value, or NaN.
  at(name, row, column) {
    const { part, measure } = this.page;
    const frame = part.frameOf(part.runAt("a", row), part.runAt("b", column));
    return part.matrix(name, measure, frame)?.[(row - frame.up.first) * frame.across.count + column - frame.across.first];
  }

  drawOne() {
    const { part, pair } = this;
    const { up, across, rows, columns } = this.block;
    const values = new Float64Array(rows * columns);
    for (let i = 0; i < rows; i += 1) {
      for (let j = 0; j < columns; j += 1) values[i * columns + j] = this.at(this.page.view, up.first + i, across.first + j);
    }
    const names = (side, run, place) => ({ side: place, count: run.count, stages: run.stages, names: part.sides[side].layers.slice(run.first, run.first + run.count) });
    const [upward, rightward] = [names("a", up, "up"), names("b", across, "across")];
    byId("one-title").replaceChildren(`${pair.a} `, element("span", { class: "note" }, "(upwards)"), ` × ${pair.b} `, element("span", { class: "note" }, "(to the right)"));
    this.updatePathControls();
    this.one.draw({
      ...this.page.scale, values, rows, columns, up: upward, across: rightward,
      lines: linesBetween(upward.stages, rightward.stages, { color: "rgba(255,255,255,.6)", width: 0.8 }),
      extra: this.marks(),
      label: `${this.page.view} of ${this.page.measure}, ${pair.a} upwards, ${pair.b} to the right. Arrow keys move between cells; Enter goes to that layer of the best match.`,
    });
    offerTable(byId("one"), () => this.asTable(up.first, rows, across.first, columns, false));
  }

  // The best match

  matches(direction) {
    const { up, across } = this.block;
    const columns = this.part.select("match", { measure: this.page.measure, pair: this.pair.name, direction });
    return columns.slice(0, direction === DIRECTIONS[0] ? up.count : across.count);
  }

  updatePathControls() {
    const matched = this.matches(DIRECTIONS[0]).some((k) => k >= 0);
    byId("path").hidden = !matched;
    if (!matched) return;
    const [a, b] = shortenAll([this.pair.a, this.pair.b]);
    offerChoices(byId("direction"), "direction", [[DIRECTIONS[0], `${a} → ${b}`], [DIRECTIONS[1], `${b} → ${a}`]], this.direction, (direction) => {
      this.direction = direction;
      byId("step").value = 0;
      this.step();
    });
    this.describeStep();
  }

  // Returns [row, column] of every matched layer of the first network of a direction.
  path(direction) {
    return this.matches(direction).map((other, own) => (direction === DIRECTIONS[0] ? [own, other] : [other, own])).filter(([i, j]) => i >= 0 && j >= 0);
  }

  marks() {
    if (byId("path").hidden) return [];
    const line = (direction, style) => ({
      type: "scatter", hoverinfo: "skip", x: this.path(direction).map(([, j]) => j), y: this.path(direction).map(([i]) => i), ...style,
    });
    const other = DIRECTIONS.find((direction) => direction !== this.direction);
    const [row, column] = (!this.page.printing && this.path(this.direction)[byId("step").value]) || [];
    return [
      line(other, { mode: "markers", marker: { symbol: "diamond-open", size: 7, color: "#fff", line: { color: "#fff", width: 1.2 } }, opacity: 0.75 }),
      line(this.direction, { mode: "lines", line: { color: "#000", width: 5 } }),
      line(this.direction, { mode: "lines+markers", line: { color: "#fff", width: 2 }, marker: { symbol: "circle", size: 8, color: "#fff", line: { color: "#000", width: 1.5 } } }),
      { type: "scatter", hoverinfo: "skip", mode: "markers", x: [column], y: [row], marker: { symbol: "circle", size: 15, color: "#56b4e9", line: { color: "#000", width: 2 } } },
    ];
  }

  step() {
    this.describeStep();
    this.one.overlay(this.marks());
  }

  describeStep() {
    const path = this.path(this.direction);
    const input = byId("step");
    input.max = path.length - 1;
    const [row, column] = path[input.value] ?? path[0];
    const [from, to] = this.direction === DIRECTIONS[0] ? ["a", "b"] : ["b", "a"];
    const at = { a: this.block.up.first + row, b: this.block.across.first + column };
    const [, value, ...more] = this.describe(at.a, at.b);
    const text = `Layer ${Number(input.value) + 1} of ${path.length}: ${this.part.sides[from].layers[at[from]]} is matched to ${this.part.sides[to].layers[at[to]]}: ${value}`;
    byId("matched").textContent = [text, ...more.filter(Boolean)].join("; ");
    input.setAttribute("aria-valuetext", text);
  }

  follow(row, column) {
    if (byId("path").hidden) return;
    byId("step").value = this.direction === DIRECTIONS[0] ? row : column;
    this.step();
  }

  chosen(row, column) {
    const pair = this.part.pairs[this.part.pairOf(row, column)];
    if (pair) this.page.state.set({ pair: pair.name });
    else byId("live").textContent = "Both layers belong to the same network; choose a cell of two networks.";
  }

  // Texts and tables

  // Returns lines about two layers: title, value, interval, chance level and calibrated value, if known.
  describe(row, column) {
    const { part, measure } = this.page;
    const at = (name) => this.at(name, row, column);
    const name = (side, k) => (part.several ? `${part.sides[side].models[k]} ${part.sides[side].layers[k]}` : part.sides[side].layers[k]);
    const level = interval(at("low"), at("high"));
    const chance = Number.isFinite(at("chance")) ? `chance ${fixed(at("chance"))}${Number.isFinite(at("chance_sd")) ? ` (sd ${fixed(at("chance_sd"))})` : ""}` : "";
    const z = Number.isFinite(at("z")) ? `z ${fixed(at("z"), 1)}` : "";
    const p = Number.isFinite(at("p")) ? `p ${probability(at("p"))}` : "";
    return [
      `${name("a", row)} × ${name("b", column)}`,
      Number.isFinite(at("value")) ? `${measure} ${fixed(at("value"))}` : `${measure}: no value`,
      level && `${part.interval || "95 % interval"} ${level}`,
      [chance, z, p].filter(Boolean).join(", "),
      Number.isFinite(at("calibrated")) ? `calibrated ${fixed(at("calibrated"))}` : "",
    ];
  }

  // Returns lines about two networks: title and value.
  describePair(row, column) {
    const { part, measure, view } = this.page;
    const { up, across, values } = this.networks;
    const value = values[row * across.length + column];
    return [
      `${part.runs.a[up[row]].model} × ${part.runs.b[across[column]].model}`,
      Number.isFinite(value) ? `${measure}${view === "value" ? "" : `, ${view}`} ${fixed(value, view === "z" ? 1 : 4)}` : `${measure}: no value`,
    ];
  }

  asTable(top, rows, left, columns, named) {
    const { part, measure, view } = this.page;
    const name = (side, k) => (named ? `${part.sides[side].models[k]}/` : "") + part.sides[side].layers[k];
    const across = [...Array(columns).keys()].map((j) => name("b", left + j));
    const up = [...Array(rows).keys()].map((i) => [
      name("a", top + i), ...across.map((_, j) => fixed(this.at(view, top + i, left + j)))]);
    return table(["Layer", ...across], up, `${measure}, ${view}`);
  }

  // Saves the values of all layers as CSV, with all digits that the page has.
  download() {
    const { part, measure, view } = this.page;
    const values = part.matrix(view, measure);
    const digits = (value) => (part.rounding ? Number(value.toPrecision(6)) : value);
    // spreadsheets interpret a text that begins with = as a formula
    const quoted = (text) => (/^\w[\w.\-/ ]*$/.test(text) ? text : `"${text.replace(/^(?=[=+\-@\t\r])/, "'").replace(/"/g, '""')}"`);
    const name = (side, k) => quoted(`${part.sides[side].models[k]}/${part.sides[side].layers[k]}`);
    const lines = part.sides.a.layers.map((_, i) => [
      name("a", i), ...Array.from(values.subarray(i * part.columns, (i + 1) * part.columns), (value) => (Number.isNaN(value) ? "" : digits(value)))].join(","));
    const head = ["", ...part.sides.b.layers.map((_, j) => name("b", j))].join(",");
    const link = element("a", {
      href: URL.createObjectURL(new Blob([[head, ...lines, ""].join("\n")], { type: "text/csv" })),
      download: `${measure} ${view}.csv`.replace(/[^\w.]+/g, "-"),
    });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}
