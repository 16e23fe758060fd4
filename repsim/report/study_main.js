// The page of studies and comparisons: its controls, and the functions that redraw it after a change.

class Page extends Frame {
  constructor(data) {
    super(data);
    this.parts = data.parts.map((raw) => new Part(raw));
    const requested = viewFromAddress();
    this.state = new State({ chosen: "", ...requested, theme: this.requestedTheme });
    this.resolveState();
    this.about = new About(this);
    this.layers = new Layers(this);
    this.pairs = new Pairs(this);
    this.families = new Families(this);
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
    const views = VIEWS.map(([name]) => name).filter((name) => part.scale(name, measure));
    const view = views.includes(this.state.get("view")) ? this.state.get("view") : "value";
    const first = part.pairs.find(({ relation }) => relation === part.relations?.[0]) ?? part.pairs[0];
    const pair = (part.pairs.find(({ name }) => name === this.state.get("pair")) ?? first)?.name;
    this.state.set({ readout, measure, view, pair }, { address: false });
    this.scale = part.scale(view, measure);
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

  updateControls() {
    const { part } = this;
    offerOptions(byId("measure"), part.measures.map(({ name }) => [name, name]), this.measure);
    offerOptions(byId("readout"), this.parts.map(({ readout }) => [readout, readout]), part.readout);
    byId("readout").parentElement.hidden = this.parts.length < 2;
    offerOptions(byId("pair"), part.pairs.map(({ name, a, b }) => [name, `${a} × ${b}`]), this.state.get("pair"));
    byId("pair").parentElement.hidden = part.pairs.length < 2;
    const views = VIEWS.map(([name, label]) => [name, label, Boolean(part.scale(name, this.measure))]);
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
    this.families.draw();
    this.pairs.list();
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
      this.pairs.choose();
    });
    for (const name of ["measure", "readout", "pair"]) byId(name).addEventListener("change", (event) => state.set({ [name]: event.target.value }));
    this.listenToFrame();
  }
}

start(Page);
