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

  run(side, name) {
    return this.runs[side].find((run) => run.model === name);
  }

  // Returns a matrix over all pairs of layers: value, low, high, chance, chance_sd, z, p, or calibrated.
  matrix(name, measure) {
    const key = `${name}\0${measure}`;
    if (!this.cache.has(key)) this.cache.set(key, this.makeMatrix(name, measure));
    return this.cache.get(key);
  }

  makeMatrix(name, measure) {
    if (name === "calibrated") return this.calibrated(measure);
    const value = name === "value" ? null : this.matrix("value", measure);
    const packed = this.matrices[name]?.[this.measures.findIndex((about) => about.name === measure)];
    if (packed && !Object.keys(packed).length) return this.derived(name, measure, value);
    const empty = value ? null : new Float64Array(this.rows * this.columns).fill(NaN); // for a measure without any value
    return unpackMatrix(packed, this.rows, this.columns, value) ?? empty;
  }

  derived(name, measure, value) {
    if (name === "high") return value.map(((low) => (mid, i) => 2 * mid - low[i])(this.matrix("low", measure)));
    const [chance, sd] = [this.matrix("chance", measure), this.matrix("chance_sd", measure)];
    return value.map((similarity, i) => (similarity - chance[i]) / sd[i]);
  }

  // Returns max(0, (value - tau) / (most - tau)), where tau is the threshold of the largest value of a pair of networks.
  calibrated(measure) {
    if (!this.measure(measure).views.calibrated) return null;
    const taus = this.select("threshold_largest", { measure });
    const { most } = this.measure(measure);
    return this.matrix("value", measure).map((value, k) => {
      const tau = taus[this.pairOf(Math.floor(k / this.columns), k % this.columns)] ?? NaN;
      return Math.max(0, (value - tau) / (most - tau));
    });
  }

  pairOf(row, column) {
    return this.pairAt.get(`${this.sides.a.models[row]}\0${this.sides.b.models[column]}`) ?? -1;
  }

  // Returns a matrix with its colour scale; undefined if the measure does not have this view.
  view(name, measure) {
    const scale = this.measure(measure).views[name];
    return scale && { values: this.matrix(name, measure), zmin: scale.low, zmax: scale.high, colorscale: this.palettes[scale.palette] };
  }
}
