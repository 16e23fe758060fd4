// Draws the layers of one point by those of what it is compared with, and by themselves; a slider moves along the axis.

class SeriesLayers {
  constructor(page) {
    this.page = page;
    this.tables = Object.fromEntries(["between", "within"].map((name) => [name, new Heatmap(byId(`${name}-map`), {
      describe: (row, column) => this.describe(name, row, column),
      choose: (row, column) => { byId("live").textContent = this.describe(name, row, column).join("; "); },
    })]));
    byId("point").addEventListener("input", (event) => page.state.set({ point: page.points[event.target.value] }));
  }

  draw() {
    const { part, measure, comparison, point } = this.page;
    const { name, text } = part.points[point];
    byId("between-title").replaceChildren(`${name} `, element("span", { class: "note" }, "(upwards)"), ` × ${this.page.comparedWith} `, element("span", { class: "note" }, "(to the right)"));
    byId("within-title").replaceChildren(`${name} with itself`);
    this.slider();
    for (const [kind, variable] of [["between", "blocks"], ["within", "within"]]) {
      const { values, up, across } = part.table(variable, { measure, comparison, point });
      const exists = Boolean(across.length);
      byId(`${kind}-map`).hidden = !exists;
      if (kind === "between") {
        byId("between-none").hidden = exists;
        byId("between-none").textContent = `${part.axis} ${text} has no ${comparison === "previous" ? "previous point" : "point to compare with"}.`;
        byId("between").querySelector("details").hidden = !exists;
      }
      if (!exists) continue;
      const names = (side, layers) => ({ side, count: layers.length, names: layers });
      const stages = up.length === part.layers.length ? part.stages : [];
      const style = { color: "rgba(255,255,255,.6)", width: 0.8 };
      this.tables[kind].draw({
        values, rows: up.length, columns: across.length, ...part.scale(measure), up: names("up", up), across: names("across", across),
        lines: linesBetween(stages, across.length === part.layers.length ? part.stages : [], style),
        label: `${measure} of the layers of ${name}, upwards, and ${kind === "between" ? `${this.page.comparedWith}, to the right` : "the same network"}. Arrow keys move between cells.`,
      });
      offerTable(byId(kind), () => table(["Layer", ...across], up.map((layer, i) => [layer, ...across.map((_, j) => fixed(values[i * across.length + j]))]), `${measure}, ${name}`));
    }
  }

  slider() {
    const { part, measure, comparison, point, points } = this.page;
    const input = byId("point");
    const k = points.indexOf(point);
    input.max = points.length - 1;
    input.value = k;
    byId("point-label").textContent = part.axis;
    const value = part.text("network", { measure, comparison, point });
    const place = `${part.axis} ${part.points[point].text}`;
    const similarity = value === MISSING ? `not compared with ${this.page.comparedWith}` : `${measure} with ${this.page.comparedWith} ${value}, mean over layers`;
    input.setAttribute("aria-valuetext", `${place}, ${k + 1} of ${points.length}: ${similarity}`);
    byId("point-text").textContent = `${place} (${k + 1} of ${points.length}): ${similarity}`;
  }

  describe(name, row, column) {
    const { part, measure, comparison, point } = this.page;
    const { values, up, across } = part.table(name === "between" ? "blocks" : "within", { measure, comparison, point });
    return [`${up[row]} × ${across[column]}`, `${measure} ${fixed(values[row * across.length + column])}`, `${part.axis} ${part.points[point].text}`];
  }
}
