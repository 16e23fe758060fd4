// Draws a heatmap that can be read with pointer and keyboard.

const TREE = 44; // height of a dendrogram in pixels

class Heatmap {
  // `describe(row, column)` returns lines about a cell; `choose(row, column)` is called by Enter and by a click.
  constructor(box, { describe, choose }) {
    Object.assign(this, { box, describe, choose, cursor: null, drawn: null });
    box.tabIndex = 0;
    box.setAttribute("role", "application");
    box.setAttribute("aria-roledescription", "heatmap");
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("focus", () => this.move(0, 0));
    box.addEventListener("blur", () => this.mark(null));
    box.addEventListener("mouseleave", hideTip);
  }

  // `data`: rows, columns, values, zmin, zmax, colorscale, names of both sides, label, lines, extra traces.
  draw(data) {
    this.drawn = data;
    if (!("Plotly" in window)) {
      this.preview(data);
      return;
    }
    if (this.box.querySelector("canvas.preview")) {
      this.box.replaceChildren();
      this.box.style.height = "";
    }
    const { rows, columns, values } = data;
    const frame = frameOf(this.box, data);
    this.frame = frame;
    const z = [...Array(rows).keys()].map((i) => Array.from(values.subarray(i * columns, (i + 1) * columns)));
    const trace = {
      type: "heatmap", z, zmin: data.zmin, zmax: data.zmax, colorscale: data.colorscale, hoverinfo: "none", xgap: 0, ygap: 0,
      colorbar: { thickness: 11, outlinewidth: 0, len: 1, ypad: 0, xpad: 8, tickfont: { color: cssVariable("soft"), size: 11 }, nticks: 7, ticklabeloverflow: "allow" },
    };
    const side = (names, room) => ({ ...ticksOf(names, room), range: [-0.5, names.count - 0.5], zeroline: false, showgrid: false, ticks: "outside", ticklen: 3 });
    const layout = layoutOf({
      ...frame.size,
      margin: frame.margin,
      plot_bgcolor: cssVariable("empty"),
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      showlegend: false,
      xaxis: { ...side(data.across, frame.cell), tickangle: data.across.ticks ? 0 : -90 },
      yaxis: side(data.up, frame.cell),
      shapes: this.shapes(),
    });
    if (data.across.ticks && frame.tilted) layout.xaxis.tickangle = -45;
    this.box.setAttribute("aria-label", data.label);
    Plotly.react(this.box, [trace, ...(data.extra ?? [])], layout, CONFIG);
    if (!this.listening) {
      this.listening = true;
      this.box.on("plotly_hover", ({ points, event }) => {
        const [row, column] = points[0].pointIndex ?? points[0].pointNumber;
        showTip(this.describe(row, column), event.clientX, event.clientY);
      });
      this.box.on("plotly_unhover", hideTip);
      this.box.on("plotly_click", ({ points }) => this.choose(...(points[0].pointIndex ?? points[0].pointNumber)));
    }
  }

  // Draws the same cells on a canvas while plotly.js is loading, which takes half a second or more.
  preview({ rows, columns, values, zmin, zmax, colorscale, ...more }) {
    const { size, margin } = frameOf(this.box, { rows, columns, ...more });
    const canvas = element("canvas", { class: "preview", width: columns, height: rows, "aria-hidden": "true" });
    const place = { left: margin.l, top: margin.t, width: size.width - margin.l - margin.r, height: size.height - margin.t - margin.b };
    for (const [name, value] of Object.entries(place)) canvas.style[name] = `${value}px`;
    const painted = canvas.getContext("2d");
    const [colour, empty] = [painterOf(colorscale), cssVariable("empty")];
    for (let i = 0; i < rows; i += 1) {
      for (let j = 0; j < columns; j += 1) {
        const value = values[i * columns + j];
        painted.fillStyle = Number.isNaN(value) ? empty : colour((value - zmin) / (zmax - zmin));
        painted.fillRect(j, rows - 1 - i, 1, 1);
      }
    }
    this.box.style.height = `${size.height}px`;
    this.box.replaceChildren(canvas);
  }

  // Replaces only the marks over the cells.
  overlay(extra) {
    this.drawn.extra = extra;
    Plotly.react(this.box, [this.box.data[0], ...extra], this.box.layout, CONFIG);
  }

  key(event) {
    const steps = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };
    const [up, right] = steps[event.key] ?? [];
    if (up !== undefined) this.move(up, right);
    else if (event.key === "Home") this.move(-Infinity, -Infinity);
    else if (event.key === "End") this.move(Infinity, Infinity);
    else if ((event.key === "Enter" || event.key === " ") && this.cursor) this.choose(...this.cursor);
    else return;
    event.preventDefault();
  }

  move(up, right) {
    if (!this.drawn) return;
    const within = (value, count) => Math.min(Math.max(value, 0), count - 1);
    const [row, column] = this.cursor ?? [0, 0];
    this.mark([within(row + up, this.drawn.rows), within(column + right, this.drawn.columns)]);
    byId("live").textContent = this.describe(...this.cursor).filter(Boolean).join("; ");
  }

  mark(cursor) {
    this.cursor = cursor ?? this.cursor;
    this.marked = cursor !== null;
    if (this.listening) Plotly.relayout(this.box, { shapes: this.shapes() });
  }

  shapes() {
    const { lines, tree } = this.drawn;
    const shapes = [...lines];
    if (tree) {
      const { size, margin } = this.frame;
      const high = size.height - margin.t - margin.b;
      shapes.push(treeAbove(tree, { low: 3 / high, high: (TREE - 4) / high }));
    }
    if (this.marked && this.cursor && document.activeElement === this.box) {
      const [row, column] = this.cursor;
      const at = { type: "rect", x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5 };
      shapes.push({ ...at, line: { color: "#000", width: 5 } }, { ...at, line: { color: "#fff", width: 2.5 } });
    }
    return shapes;
  }
}

// Returns the dendrogram of the columns of a heatmap, above it; joints are corners (column, height from 0 to 1).
function treeAbove(joints, { low, high }) {
  const path = joints.map((corners) => `M${corners.map(([x, height]) => `${x},${1 + low + (high - low) * height}`).join("L")}`).join("");
  return { type: "path", path, xref: "x", yref: "paper", line: { color: cssVariable("soft"), width: 1 } };
}

// Returns lines between groups of layers, at these positions along both sides.
function linesBetween(up, across, style) {
  return [
    ...across.map((x) => ({ type: "line", x0: x - 0.5, x1: x - 0.5, y0: 0, y1: 1, yref: "paper", line: style })),
    ...up.map((y) => ({ type: "line", y0: y - 0.5, y1: y - 0.5, x0: 0, x1: 1, xref: "paper", line: style })),
  ];
}

// Returns size and margins of a heatmap, with square cells if possible and room for the longest name.
function frameOf(box, { rows, columns, up, across, tree }) {
  const width = Math.max(box.clientWidth, 240);
  const most = width < 480 ? 18 : 26;
  const longest = (names) => Math.max(...shortenAll(names.ticks ?? names.names, most).map((name) => widthOf(name, names.ticks ? 12 : 11)));
  const left = 14 + longest(up);
  const right = 76; // for the colour bar; plotly.js would widen a smaller margin
  const wide = Math.max(width - left - right, 80);
  const tilted = Boolean(across.ticks) && longest(across) + 8 > wide / across.ticks.length;
  const bottom = tilted ? 20 + 0.71 * longest(across) : 14 + (across.ticks ? 12 : longest(across));
  const square = Math.max(rows, columns) <= 4 * Math.min(rows, columns);
  const tall = (wide / columns) * rows;
  const shrunk = square ? Math.min(1, 540 / tall) : 1;
  const high = square ? tall * shrunk : Math.min(Math.max(tall, 220), 560);
  const spare = wide * (1 - shrunk);
  const top = 28 + (tree ? TREE : 0);
  return {
    size: { width, height: high + bottom + top },
    margin: { l: left, r: right + spare, t: top, b: bottom },
    cell: { across: (wide - spare) / columns, up: high / rows, most },
    tilted,
  };
}

function ticksOf(names, cell) {
  const texts = shortenAll(names.ticks ?? names.names, cell.most).map(escapeMarkup);
  if (names.ticks) return { tickvals: names.at, ticktext: texts, automargin: false };
  const room = names.side === "up" ? cell.up : cell.across;
  const small = room >= 10.5 && room < 12.5;
  const every = small ? 1 : Math.max(1, Math.ceil(12.5 / room));
  const shown = [...Array(names.count).keys()].filter((k) => k % every === 0);
  return { tickvals: shown, ticktext: shown.map((k) => texts[k]), tickfont: { size: small ? 9.5 : 11 }, automargin: false };
}

function showTip([title, value, ...lines], x, y) {
  const tip = byId("tip");
  tip.replaceChildren(
    element("b", {}, title),
    element("div", { class: "big" }, value),
    ...lines.filter(Boolean).map((line) => element("div", {}, line)),
  );
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(6, x + 18 + box.width > innerWidth ? x - box.width - 14 : x + 18)}px`;
  tip.style.top = `${Math.max(6, y + 18 + box.height > innerHeight ? y - box.height - 14 : y + 18)}px`;
}

const hideTip = () => {
  byId("tip").hidden = true;
};
