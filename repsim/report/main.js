// The page: its controls, and the functions that redraw it after a change.

class Page {
  constructor(data) {
    this.data = data;
    this.parts = data.parts.map((raw) => new Part(raw));
    const requested = viewFromAddress();
    const theme = ["light", "dark"].includes(requested.theme) ? requested.theme : "";
    this.state = new State({ chosen: "", ...requested, theme });
    this.dark = matchMedia("(prefers-color-scheme: dark)").matches;
    this.resolveState();
    this.about = new About(this);
    this.layers = new Layers(this);
    this.pairs = new Pairs(this);
    this.shares = new Shares(this);
    this.maps = new Maps(this);
    this.stimuli = new Stimuli(this);
    this.applyTheme();
  }

  // Replaces a readout, measure, view or pair that does not exist (after a link or a change of readout) by the first one.
  resolveState() {
    const readouts = this.parts.map(({ readout }) => readout);
    const readout = readouts.includes(this.state.get("readout")) ? this.state.get("readout") : readouts[0];
    this.part = this.parts[readouts.indexOf(readout)];
    const { part } = this;
    const measure = part.measure(this.state.get("measure")).name;
    const views = VIEWS.map(([name]) => name).filter((name) => part.view(name, measure));
    const view = views.includes(this.state.get("view")) ? this.state.get("view") : "value";
    const first = part.pairs.find(({ relation }) => relation === part.relations?.[0]) ?? part.pairs[0];
    const pair = (part.pairs.find(({ name }) => name === this.state.get("pair")) ?? first)?.name;
    this.state.set({ readout, measure, view, pair }, { address: false });
    this.shown = part.view(view, measure);
  }

  get measure() {
    return this.state.get("measure");
  }

  get view() {
    return this.state.get("view");
  }

  get pair() {
    return this.part.pairs.find(({ name }) => name === this.state.get("pair"));
  }

  // Returns the kernel to show for the measure in sections that only have values for debiased CKA.
  get kernel() {
    return this.part.measure(this.measure).kernel;
  }

  get chosen() {
    return new Set(this.state.get("chosen").split("\0").filter(Boolean));
  }

  applyTheme() {
    const theme = this.state.get("theme") || (this.dark ? "dark" : "light");
    document.documentElement.dataset.theme = theme;
    byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", `${theme === "dark" ? "Light" : "Dark"} colours`);
  }

  updateControls() {
    const { part } = this;
    offerOptions(byId("measure"), part.measures.map(({ name }) => [name, name]), this.measure);
    offerOptions(byId("readout"), this.parts.map(({ readout }) => [readout, readout]), part.readout);
    byId("readout").parentElement.hidden = this.parts.length < 2;
    offerOptions(byId("pair"), part.pairs.map(({ name, a, b }) => [name, `${a} × ${b}`]), this.state.get("pair"));
    byId("pair").parentElement.hidden = part.pairs.length < 2;
    const views = VIEWS.map(([name, label]) => [name, label, Boolean(part.view(name, this.measure))]);
    byId("view").hidden = views.filter(([, , enabled]) => enabled).length < 2;
    offerChoices(byId("view"), "view", views, this.view, (view) => this.state.set({ view }));
    const { label, formula, citation } = part.measure(this.measure);
    byId("about").textContent = [label, formula, citation].filter(Boolean).join(" — ");
  }

  drawMatrix() {
    this.layers.drawAll();
    this.drawPair();
  }

  drawPair() {
    if (this.pair) this.layers.drawOne();
    byId("one").hidden = !this.pair;
    this.pairs.detail();
  }

  // Draws the sections below the first screen.
  drawRest() {
    const { part } = this;
    const study = part.isStudy;
    byId("pairs").hidden = !study || !part.pairs.length;
    byId("depth").hidden = !study || !(part.coords.state ?? []).length || !part.shares.length;
    byId("maps").hidden = !study || !(part.coords.map ?? []).length || !part.select("map_coordinates").some(Number.isFinite);
    byId("stimuli").hidden = true;
    if (!byId("pairs").hidden) this.drawPairs();
    if (!byId("depth").hidden) this.shares.draw();
    if (!byId("maps").hidden) this.maps.draw();
    if (study) this.stimuli.draw();
  }

  drawPairs() {
    this.pairs.forest();
    this.pairs.list();
  }

  drawAll() {
    this.drawMatrix();
    this.drawRest();
  }

  listen() {
    const { state } = this;
    state.listen(["readout"], () => {
      this.resolveState();
      this.about.draw();
      this.updateControls();
      this.drawAll();
    });
    state.listen(["measure", "view"], () => {
      this.resolveState();
      this.updateControls();
      this.drawMatrix();
    });
    state.listen(["measure"], () => requestAnimationFrame(() => this.drawRest()));
    state.listen(["pair"], () => {
      byId("pair").value = state.get("pair");
      byId("step").value = 0;
      this.drawPair();
      this.pairs.mark();
    });
    state.listen(["chosen"], () => {
      this.maps.networks();
      this.pairs.mark();
    });
    state.listen(["theme"], () => {
      this.applyTheme();
      this.drawAll();
    });
    for (const name of ["measure", "readout", "pair"]) byId(name).addEventListener("change", (event) => state.set({ [name]: event.target.value }));
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    byId("theme").addEventListener("click", () => state.set({ theme: document.documentElement.dataset.theme === "dark" ? "light" : "dark" }));
    byId("copy").addEventListener("click", () => this.about.copy());
    addEventListener("hashchange", () => {
      if (location.hash === state.address || !Object.keys(viewFromAddress()).length) return;
      state.set(viewFromAddress(), { address: false });
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", ({ matches }) => {
      this.dark = matches;
      this.applyTheme();
      this.drawAll();
    });
    addEventListener("keydown", ({ key }) => key === "Escape" && hideTip());
    this.listenToSizes();
  }

  listenToSizes() {
    let width = innerWidth;
    let timer = 0;
    addEventListener("resize", () => {
      if (innerWidth === width || this.printing) return;
      width = innerWidth;
      clearTimeout(timer);
      timer = setTimeout(() => this.drawAll(), 120);
    });
    addEventListener("beforeprint", () => this.print());
    addEventListener("afterprint", () => this.endPrint());
  }

  // Prepares the page for printing: light colours, the width of A4 within margins, all sections open.
  print() {
    this.printing = true;
    this.closed = [...document.querySelectorAll("details:not(.data):not([open])")];
    for (const details of this.closed) details.open = true;
    document.documentElement.dataset.theme = "light";
    document.body.style.width = "180mm";
    this.drawAll();
  }

  endPrint() {
    for (const details of this.closed) details.open = false;
    document.body.style.width = "";
    this.printing = false;
    this.applyTheme();
    this.drawAll();
  }
}

async function start() {
  const library = inflate(byId("library").textContent); // runs in the background
  const data = JSON.parse(byId("data").textContent);
  const page = new Page(data);
  page.about.draw();
  page.updateControls();
  page.drawMatrix();
  const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  await painted();
  performance.mark("seen");
  document.head.append(element("script", {}, await library));
  page.drawMatrix();
  page.listen();
  performance.mark("drawn");
  await painted();
  page.drawRest();
  performance.mark("complete");
  document.documentElement.dataset.ready = "";
}

start().catch((error) => {
  byId("failure").hidden = false;
  byId("failure").textContent = `This page could not be drawn: ${error.message}. It needs a browser of 2023 or newer.`;
  throw error;
});
