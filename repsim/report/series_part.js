// The series that the page shows: its points, runs and tables of layers.

class SeriesPart extends Variables {
  get isStudy() {
    return false;
  }

  // Returns the positions of the points of a run.
  pointsOf(run) {
    return this.points.map((_, k) => k).filter((k) => this.points[k].run === run);
  }

  // Returns the similarities of the layers of a point and those of what it is compared with, or of itself.
  table(name, { measure, comparison, point }) {
    const { layers, others } = this.points[point];
    const columns = name === "within" ? layers : others[comparison];
    const at = name === "within" ? { measure, point } : { measure, comparison, point };
    const all = this.select(name, at);
    const width = this.variables[name].shape.at(-1);
    const values = new Float64Array(layers.length * columns.length);
    for (let i = 0; i < layers.length; i += 1) {
      for (let j = 0; j < columns.length; j += 1) values[i * columns.length + j] = all[i * width + j];
    }
    return { values, up: layers, across: columns };
  }

  scale(measure, view = "similarity") {
    const about = this.measure(measure);
    const scale = view === "calibrated" ? about.calibrated_scale : about.scale;
    return { zmin: scale.low, zmax: scale.high, colorscale: this.palettes[scale.palette] };
  }

  // Returns a value of a point with its interval, as text.
  text(name, at) {
    return `${fixed(this.scalar(name, at))}${bracketed(this.scalar(`${name}_low`, at), this.scalar(`${name}_high`, at))}`;
  }

  // Returns a plotly axis with the values of the axis of the series, and the mark where it changes its scale.
  axisOf({ at, texts, break: broken }, side = "x") {
    const marks = broken === null ? [] : [{
      text: "//", showarrow: false, font: { size: 13, color: cssVariable("soft") }, bgcolor: cssVariable("ground"), borderpad: 0,
      ...(side === "x" ? { x: broken, y: 0, yref: "paper", yanchor: "middle" } : { y: broken, x: 0, xref: "paper", xanchor: "middle", textangle: 90 }),
    }];
    return { axis: { title: { text: escapeMarkup(this.axis) }, zeroline: false, ...(at ? { tickvals: at, ticktext: texts } : {}), showline: true }, marks };
  }
}

// Returns traces of a line with its band, of points with undefined values left out.
function lineWithin({ x, y, low, high, colour, name, text, ...more }) {
  const known = x.map((_, k) => k).filter((k) => Number.isFinite(low[k]) && Number.isFinite(high[k]));
  const band = known.length > 1 ? [{
    type: "scatter", mode: "lines", fill: "toself", fillcolor: withAlpha(colour, 0.15), line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: name,
    x: [...known.map((k) => x[k]), ...known.toReversed().map((k) => x[k])], y: [...known.map((k) => high[k]), ...known.toReversed().map((k) => low[k])],
  }] : [];
  return [...band, {
    type: "scatter", mode: "lines+markers", x, y, name: escapeMarkup(name), legendgroup: name, line: { color: colour, width: 2 }, marker: { color: colour, size: 6 },
    hoverinfo: "text", text: text.map((lines) => lines.map(escapeMarkup).join("<br>")), ...more,
  }];
}
