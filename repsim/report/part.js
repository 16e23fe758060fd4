// One part of the page: a study or a comparison under one readout.

class Part extends Variables {
  constructor(raw) {
    super(raw);
    this.cache = new Map();
    if (raw.controls) this.variables = { ...raw.variables, every_control: raw.controls };
    this.runs = { a: raw.sides.a.runs, b: raw.sides.b.runs };
    this.rows = raw.sides.a.layers.length;
    this.columns = raw.sides.b.layers.length;
    this.pairs = raw.coords.pair.map((name, k) => ({ name, a: raw.coords.pair_a[k], b: raw.coords.pair_b[k], relation: raw.coords.relation[k] }));
    this.pairAt = new Map(this.pairs.flatMap((pair, k) => [[`${pair.a}\0${pair.b}`, k], [`${pair.b}\0${pair.a}`, k]]));
  }

  get isStudy() {
    return this.kind === "study";
  }

  get several() { // whether the part has more than one pair
    return this.runs.a.length > 1 || this.runs.b.length > 1;
  }

  get large() { // whether the heatmap of all shows networks
    return Boolean(this.overview);
  }

  // Returns the frame of a matrix of all layers, or of those of two runs.
  get whole() {
    return { up: { first: 0, count: this.rows }, across: { first: 0, count: this.columns } };
  }

  // Returns the smallest frame that holds the layers of a pair and can be unpacked.
  frameOf(up, across) {
    return this.in_blocks ? { up, across } : this.whole;
  }

  run(side, name) {
    return this.runs[side].find((run) => run.model === name);
  }

  runAt(side, k) {
    return this.runs[side].find(({ first, count }) => k >= first && k < first + count);
  }

  // Returns a matrix of layers within a frame: value, low, high, chance, chance_sd, z, p, or calibrated.
  matrix(name, measure, frame = this.whole) {
    const key = [name, measure, frame.up.first, frame.up.count, frame.across.first, frame.across.count].join("\0");
    if (!this.cache.has(key)) this.cache.set(key, this.makeMatrix(name, measure, frame));
    return this.cache.get(key);
  }

  makeMatrix(name, measure, frame) {
    if (this.in_blocks && frame.up.count === this.rows && frame.across.count === this.columns) return this.assembled(name, measure);
    if (name === "calibrated") return this.calibrated(measure, frame);
    const at = (other) => this.matrix(other, measure, frame);
    const value = name === "value" ? null : at("value");
    const packed = this.matrices[name]?.[this.measures.findIndex((about) => about.name === measure)];
    if (packed && !Object.keys(packed).length) return this.derived(name, value, at);
    const [rows, columns] = [frame.up.count, frame.across.count];
    const empty = value ? null : new Float64Array(rows * columns).fill(NaN); // for a measure without any value
    if (!packed?.blocks) return unpackMatrix(packed, rows, columns, value) ?? empty;
    const [i, j] = [this.runs.a.indexOf(frame.up), this.runs.b.indexOf(frame.across)];
    return unpackBlock(packed, this.places(packed.symmetric), rows, columns, i, j);
  }

  places(symmetric) {
    const key = `places\0${symmetric}`;
    if (!this.cache.has(key)) this.cache.set(key, placesOf(this.runs.a, this.runs.b, symmetric));
    return this.cache.get(key);
  }

  // Returns a matrix of all layers, put together from those of the pairs of networks.
  assembled(name, measure) {
    const values = new Float64Array(this.rows * this.columns);
    for (const up of this.runs.a) {
      for (const across of this.runs.b) {
        const block = this.makeMatrix(name, measure, { up, across });
        if (!block) return null;
        for (let i = 0; i < up.count; i += 1) {
          values.set(block.subarray(i * across.count, (i + 1) * across.count), (up.first + i) * this.columns + across.first);
        }
      }
    }
    return values;
  }

  derived(name, value, at) {
    if (name === "high") return value.map(((low) => (mid, i) => 2 * mid - low[i])(at("low")));
    const [chance, sd] = [at("chance"), at("chance_sd")];
    return value.map((similarity, i) => (similarity - chance[i]) / sd[i]);
  }

  // Returns max(0, (value - tau) / (most - tau)), where tau is the threshold of the largest value of a pair of networks.
  calibrated(measure, { up, across }) {
    if (!this.measure(measure).views.calibrated) return null;
    const taus = this.select("threshold_largest", { measure });
    const { most } = this.measure(measure);
    return this.matrix("value", measure, { up, across }).map((value, k) => {
      const tau = taus[this.pairOf(up.first + Math.floor(k / across.count), across.first + (k % across.count))] ?? NaN;
      return Math.max(0, (value - tau) / (most - tau));
    });
  }

  pairOf(row, column) {
    return this.pairAt.get(`${this.sides.a.models[row]}\0${this.sides.b.models[column]}`) ?? -1;
  }

  // Returns the order and the dendrogram of the networks of a large part, and one value for each pair of networks.
  overviewOf(name, measure) {
    const { order, tree, ...packed } = this.overview[this.measures.findIndex((about) => about.name === measure)];
    const values = Float64Array.from(unpackArray(packed[name]));
    const [rows, columns] = [this.runs.a.length, this.runs.b.length];
    const [up, across] = [order ?? [...Array(rows).keys()], order ?? [...Array(columns).keys()]];
    return { up, across, tree, values: Float64Array.from(up.flatMap((i) => across.map((j) => values[i * columns + j]))) };
  }

  // Returns the colour scale of a view; undefined if the measure does not have this view.
  scale(name, measure) {
    const scale = this.measure(measure).views[name];
    return scale && { zmin: scale.low, zmax: scale.high, colorscale: this.palettes[scale.palette] };
  }
}
