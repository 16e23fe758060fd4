// Draws one small panel for each family: how similar its networks are to those of every family.

const SVG = "http://www.w3.org/2000/svg";
const MOST_PANELS = 12;
const MOST_ROWS = 12; // of more families, a panel shows the nearest and the farthest ones
const PANEL = { row: 18, top: 6, bottom: 20, letters: 16, right: 10 };

function drawn(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Returns at most `count` round numbers within a range.
function roundNumbers([low, high], count) {
  const step = [1, 2, 5, 10].map((k) => k * 10 ** Math.floor(Math.log10((high - low) / count))).find((size) => (high - low) / size <= count);
  const first = Math.ceil(low / step - 1e-9);
  return [...Array(Math.floor(high / step + 1e-9) - first + 1).keys()].map((k) => Number(((first + k) * step).toPrecision(6)));
}

class Families {
  constructor(page) {
    this.page = page;
  }

  get part() {
    return this.page.part;
  }

  // Returns for every family the rows of its panel: another family, or itself, with the values of all their pairs.
  get panels() {
    const { part } = this;
    const { pairs } = this.page;
    const family = new Map(part.coords.model.map((model, k) => [model, part.coords.family[k]]));
    const rows = new Map([...new Set(part.coords.family)].map((name) => [name, new Map()]));
    for (const pair of part.pairs) {
      const [value, control] = [pairs.value(pair.name), pairs.number("control", pair.name)];
      if (!Number.isFinite(value)) continue;
      const sides = [family.get(pair.a), family.get(pair.b)];
      for (const [own, other] of new Set(sides).size === 1 ? [sides] : [sides, sides.toReversed()]) {
        if (!rows.get(own).has(other)) rows.get(own).set(other, { other, own: own === other, values: [], controls: [] });
        const row = rows.get(own).get(other);
        row.values.push(value);
        if (Number.isFinite(control)) row.controls.push(control);
      }
    }
    const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : NaN);
    return [...rows].map(([name, others]) => ({
      name,
      rows: [...others.values()].map((row) => ({ ...row, mean: mean(row.values), control: mean(row.controls) })).toSorted((a, b) => b.own - a.own || b.mean - a.mean),
    })).filter(({ rows: all }) => all.length);
  }

  draw() {
    const { part } = this;
    const panels = part.extremes ? this.panels : [];
    byId("family-panels").hidden = panels.length < 2;
    if (panels.length < 2) return;
    const shown = panels.slice(0, MOST_PANELS);
    const left = panels.length - shown.length;
    byId("panels-note").textContent = [part.panels_note, left && `The table also has the other ${left} families.`].filter(Boolean).join(" ");
    const [low, high] = extremes(panels.flatMap(({ rows }) => rows.flatMap(({ values, control }) => [...values, ...(Number.isFinite(control) ? [control] : [])])));
    const room = 0.04 * (high - Math.min(0, low) || 1);
    const range = [Math.min(0, low) - room, high + room];
    const labels = shortenAll(part.coords.family, PANEL.letters);
    const short = new Map(part.coords.family.map((name, k) => [name, labels[k]]));
    byId("panels").replaceChildren(...shown.map((panel) => this.panel(panel, range, short)));
    offerTable(byId("family-panels"), () => table(
      ["Family", "With", "Pairs", "Mean", "Least", "Most", "Mean of controls"],
      panels.flatMap(({ name, rows }) => rows.map(({ other, values, mean, control }) => [
        name, other, String(values.length), fixed(mean), fixed(Math.min(...values)), fixed(Math.max(...values)), fixed(control)])),
      `${this.page.measure}, pairs of networks of every two families`, 2));
  }

  panel({ name, rows }, range, short) {
    const half = Math.floor(MOST_ROWS / 2);
    const few = rows.length <= MOST_ROWS ? rows : [...rows.slice(0, half), ...rows.slice(half - MOST_ROWS)];
    const names = Math.max(...few.map(({ other }) => widthOf(short.get(other), 11))) + 8;
    const [width, height] = [270, PANEL.top + PANEL.row * few.length + PANEL.bottom];
    const x = (value) => names + ((value - range[0]) / (range[1] - range[0])) * (width - names - PANEL.right);
    const y = (k) => PANEL.top + PANEL.row * (k + 0.5);
    const ticks = roundNumbers(range, 4).flatMap((value) => [
      drawn("line", { x1: x(value), x2: x(value), y1: PANEL.top, y2: height - PANEL.bottom, class: value ? "grid" : "zero" }),
      drawn("text", { x: x(value), y: height - 6, "text-anchor": "middle" }, String(value)),
    ]);
    const marks = few.flatMap(({ other, own, values, mean, control }, k) => [
      drawn("text", { x: names - 6, y: y(k) + 4, "text-anchor": "end" }, short.get(other)),
      drawn("path", { d: values.map((value) => `M${x(value).toFixed(1)} ${y(k)}h0`).join(""), class: own ? "dots own" : "dots" }),
      drawn("circle", { cx: x(mean), cy: y(k), r: 5, class: own ? "mean own" : "mean" }, drawn("title", {}, `${name}, ${other}: mean ${fixed(mean)} of ${values.length}`)),
      ...(Number.isFinite(control) ? [drawn("path", { d: `M${x(control)} ${y(k) - 5}l5 5l-5 5l-5 -5z`, class: "control" }, drawn("title", {}, `${name}, ${other}: controls ${fixed(control)}`))] : []),
    ]);
    const label = `${name}: ${few.map(({ other, mean }) => `${other} ${fixed(mean, 3)}`).join(", ")}`;
    return element("div", { class: "panel" }, element("h4", {}, name), drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...ticks, ...marks));
  }
}
