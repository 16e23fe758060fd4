// Variables with named dimensions, packed by packing.py: selected by labels, unpacked at first use.

class Variables {
  constructor(raw) {
    Object.assign(this, raw);
    this.arrays = new Map();
    this.indices = new Map();
  }

  // Returns the values of a variable at labels or positions of some dimensions, in the order of the other dimensions.
  select(name, at = {}) {
    const variable = this.variables[name];
    if (!variable) return [];
    if (!this.arrays.has(name)) this.arrays.set(name, unpackArray(variable));
    let offsets = [0];
    variable.dims.forEach((dim, k) => {
      const stride = variable.shape.slice(k + 1).reduce((a, b) => a * b, 1);
      const indices = dim in at ? [this.place(dim, at[dim])] : [...Array(variable.shape[k]).keys()];
      offsets = indices.includes(-1) ? [] : offsets.flatMap((offset) => indices.map((i) => offset + i * stride));
    });
    return offsets.map((i) => this.arrays.get(name)[i]);
  }

  scalar(name, at) {
    return this.select(name, at)[0];
  }

  place(dim, label) {
    if (typeof label === "number") return label;
    if (!this.indices.has(dim)) this.indices.set(dim, new Map((this.coords[dim] ?? []).map((name, k) => [name, k]).reverse()));
    return this.indices.get(dim).get(label) ?? -1;
  }

  // Returns what is known of a measure, or else of the one that the page opens on.
  measure(name) {
    const about = (wanted) => this.measures.find((measure) => measure.name === wanted);
    return about(name) ?? about(this.opens_on) ?? this.measures[0];
  }
}
