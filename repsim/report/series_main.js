// The page of a series: its controls, and the functions that redraw it after a change.

class SeriesPage extends Frame {
  constructor(data) {
    super(data);
    this.part = new SeriesPart(data.parts[0]);
    this.state = new State({ ...viewFromAddress(), theme: this.requestedTheme });
    this.resolveState();
    this.about = new About(this);
    this.layers = new SeriesLayers(this);
    this.along = new SeriesAxis(this);
    this.settling = new Settling(this);
    this.applyTheme();
  }

  // Replaces a measure, comparison, run, view or point that does not exist by the first one; of points by the middle one.
  resolveState() {
    const { part, state } = this;
    const among = (name, all) => (all.includes(state.get(name)) ? state.get(name) : all[0]);
    const measure = among("measure", part.measures.map(({ name }) => name));
    const comparison = among("comparison", part.comparisons.map(({ name }) => name));
    const asked = Number(state.get("point"));
    const stated = state.get("point") !== undefined && Number.isInteger(asked) && asked >= 0 && asked < part.points.length;
    const run = stated && !state.get("run") ? part.points[asked].run : among("run", part.runs.map(({ name }) => name));
    const view = part.measure(measure).calibrated_scale ? among("view", ["similarity", "calibrated"]) : "similarity";
    this.points = part.pointsOf(run);
    const point = stated && this.points.includes(asked) ? asked : this.points[Math.floor(this.points.length / 2)];
    state.set({ measure, comparison, run, view, point }, { address: false });
  }

  get measure() {
    return this.state.get("measure");
  }

  get comparison() {
    return this.state.get("comparison");
  }

  get run() {
    return this.state.get("run");
  }

  get view() {
    return this.state.get("view");
  }

  get point() {
    return this.state.get("point");
  }

  get comparedWith() {
    return this.part.comparisons.find(({ name }) => name === this.comparison).label;
  }

  get runLabel() {
    return this.part.runs.find(({ name }) => name === this.run).label;
  }

  get colours() {
    return document.documentElement.dataset.theme === "dark" ? this.part.dark_colours : this.part.colours;
  }

  updateControls() {
    const { part } = this;
    offerOptions(byId("measure"), part.measures.map(({ name }) => [name, name]), this.measure);
    offerOptions(byId("comparison"), part.comparisons.map(({ name, label }) => [name, label]), this.comparison);
    offerOptions(byId("run"), part.runs.map(({ name, label }) => [name, label]), this.run);
    byId("run").parentElement.hidden = part.runs.length < 2;
    byId("comparison").parentElement.hidden = part.comparisons.length < 2;
    const calibrated = Boolean(part.measure(this.measure).calibrated_scale);
    byId("view").hidden = !calibrated;
    offerChoices(byId("view"), "view", [["similarity", "similarity"], ["calibrated", "calibrated", calibrated]], this.view, (view) => this.state.set({ view }));
    const { label, formula, citation } = part.measure(this.measure);
    byId("about").textContent = [label, formula, citation].filter(Boolean).join(" — ");
  }

  drawMatrix() {
    this.layers.draw();
  }

  drawRest() {
    this.along.draw();
    this.settling.draw();
    this.along.networks();
    this.tables();
  }

  tables() {
    const { part, comparison } = this;
    const { columns, rows, title, words } = part.trends;
    byId("trends").replaceChildren(...(rows.length ? [table(columns.map(capitalised), rows, capitalised(title), words)] : []));
    const further = Object.keys(part.points[0].axes);
    const several = part.runs.length > 1;
    const heads = ["Point", ...(several ? ["Run"] : []), part.axis, ...further, ...part.measures.map(({ name }) => `${name} (95 %)`)];
    const button = (k) => element("button", { type: "button", onclick: () => this.state.set({ run: part.points[k].run, point: k }) }, part.points[k].name);
    const listed = part.points.map(({ run, text, axes }, k) => [
      button(k), ...(several ? [part.runs.find(({ name }) => name === run).label] : []), text, ...further.map((name) => axes[name] || MISSING),
      ...part.measures.map(({ name }) => {
        const at = { measure: name, comparison, point: k };
        return valueWithin(part.scalar("network", at), part.scalar("network_low", at), part.scalar("network_high", at));
      })]);
    byId("points").replaceChildren(table(heads, listed, `Similarity with ${this.comparedWith}, mean over layers`));
    this.mark();
  }

  // Marks the row of the chosen point.
  mark() {
    byId("points").querySelectorAll("tbody tr").forEach((row, k) => row.classList.toggle("current", k === this.point));
  }

  listen() {
    const { state } = this;
    state.listen(["measure", "comparison", "view", "run"], () => {
      this.resolveState();
      this.updateControls();
      this.drawMatrix();
      requestAnimationFrame(() => this.drawRest());
    });
    state.listen(["point"], () => {
      this.resolveState();
      this.layers.draw();
      this.along.moveCursor();
      this.mark();
    });
    for (const name of ["measure", "comparison", "run"]) byId(name).addEventListener("change", (event) => state.set({ [name]: event.target.value }));
    this.listenToFrame();
  }
}

// Begins a heading with a capital letter, except the name of a quantity such as p.
const capitalised = (text) => (text.length > 1 ? text.charAt(0).toUpperCase() + text.slice(1) : text);

start(SeriesPage);
