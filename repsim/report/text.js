// Formats numbers and makes HTML elements. Names may come from untrusted files: they are inserted as text, never as markup.

const MISSING = "–";

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const byId = (id) => document.getElementById(id);

const fixed = (value, digits = 4) => (Number.isFinite(value) ? value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1") : MISSING);

const interval = (low, high, digits = 4) =>
  Number.isFinite(low) && Number.isFinite(high) ? `${fixed(low, digits)} to ${fixed(high, digits)}` : "";

// An interval in parentheses, to follow a value; empty if there is no interval.
const bracketed = (low, high, digits = 4) => (interval(low, high, digits) ? ` (${interval(low, high, digits)})` : "");

// A value and its interval, in a softer colour.
const valueWithin = (value, low, high) => element("span", {}, fixed(value), element("small", {}, bracketed(low, high)));

function probability(p) {
  if (!Number.isFinite(p)) return MISSING;
  if (p < 1e-30) return "< 1e-30";
  return p < 0.0005 ? p.toExponential(1) : fixed(p);
}

// Shortens names in the middle to `most` letters so that different names stay different, as figures do in Python.
const HEAD_SHARES = [0.5, 0.25, 0.7, 0.85, 0];

function shortenAll(names, most = 26) {
  const different = [...new Set(names)];
  const short = new Map(different.map((name) => [name, elide(name, most)]));
  for (const group of collisions(short)) {
    const others = new Set(different.filter((name) => !group.includes(name)).map((name) => short.get(name)));
    const ways = [...HEAD_SHARES.map((share) => (name) => elide(name, most, share)), differing(group, most)];
    const cut = ways.map((way) => group.map(way)).find((texts) => new Set(texts).size === group.length && !texts.some((text) => others.has(text)));
    if (cut) group.forEach((name, k) => short.set(name, cut[k]));
  }
  for (const group of collisions(short)) { // still equal: append their number
    for (const name of group) {
      const mark = ` #${different.indexOf(name) + 1}`;
      short.set(name, elide(name, most - mark.length) + mark);
    }
  }
  return names.map((name) => short.get(name));
}

function elide(name, most, share = HEAD_SHARES[0]) {
  const letters = [...name];
  if (letters.length <= most) return name;
  const head = Math.round((most - 1) * share);
  return [...letters.slice(0, head), "…", ...letters.slice(letters.length - (most - 1 - head))].join("");
}

// Returns groups of different names that were shortened to the same text.
function collisions(short) {
  const groups = new Map();
  for (const [name, text] of short) groups.set(text, [...(groups.get(text) ?? []), name]);
  return [...groups.values()].filter((names) => names.length > 1);
}

// Returns a function that shortens names to the part in which they differ.
function differing(names, most) {
  const common = (texts) => {
    const [first, ...others] = texts;
    let k = 0;
    while (k < first.length && others.every((text) => text[k] === first[k])) k += 1;
    return Math.max(0, k - 2);
  };
  const letters = names.map((name) => [...name]);
  const [start, end] = [common(letters), common(letters.map((name) => name.toReversed()))];
  return (name) => {
    const all = [...name];
    const piece = `…${all.slice(start, Math.max(start + 1, all.length - end)).join("")}…`;
    const whole = all.slice(0, 3).join("") + piece + all.slice(-3).join("");
    return [...whole].length <= most ? whole : elide(piece, most);
  };
}

// Measures the width of a text in pixels.
const ruler = document.createElement("canvas").getContext("2d");

function widthOf(text, size) {
  ruler.font = `${size}px ${cssVariable("sans")}`;
  return ruler.measureText(text).width;
}

// Escapes markup, because Plotly interprets <b>, <a href> and entities in labels.
const escapeMarkup = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function tile(term, value, more = "", strong = false) {
  const parts = [element("dt", {}, term), element("dd", { class: "big" }, value)];
  if (more) parts.push(element("dd", {}, more));
  return element("div", strong ? { class: "strong" } : {}, ...parts);
}

// Makes a table. The first cell of a row is its heading; the first `words` columns are left-aligned text. A cell is a
// text or an element. Empty columns are left out.
function table(columns, rows, caption = "", words = 1) {
  const empty = (cell) => (cell?.textContent ?? cell) === MISSING;
  const shown = columns.map((_, k) => k).filter((k) => k < words || !rows.every((row) => empty(row[k])));
  const kind = (k) => ({ class: k < words ? "text" : null });
  const head = shown.map((k) => element("th", { scope: "col", ...kind(k) }, columns[k]));
  const body = rows.map((row) => element("tr", {}, ...shown.map((k) =>
    (k ? element("td", kind(k), row[k]) : element("th", { scope: "row" }, row[0])))));
  const node = element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
  if (caption) node.prepend(element("caption", {}, caption));
  return node;
}

// Adds the text alternative of a figure: a table, which is made when it is opened.
function offerTable(figure, make) {
  const details = figure.querySelector("details.data");
  const fill = () => {
    details.querySelector(".scroll")?.remove();
    if (!details.open) return;
    const label = `Table of ${figure.querySelector(".plot").dataset.name}`;
    details.append(element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, make()));
  };
  details.ontoggle = fill;
  fill();
}

// Fills a group of radio buttons; options are [value, label, enabled].
function offerChoices(fieldset, name, options, chosen, choose) {
  fieldset.querySelectorAll(".choice").forEach((old) => old.remove());
  for (const [value, label, enabled = true] of options) {
    const input = element("input", { type: "radio", name, value, checked: value === chosen, disabled: !enabled });
    input.addEventListener("change", () => choose(value));
    fieldset.append(element("label", { class: "choice" }, input, element("span", {}, label)));
  }
}

function offerOptions(select, options, chosen) {
  select.replaceChildren(...options.map(([value, label]) => element("option", { value, selected: value === chosen }, label)));
  select.value = chosen;
}
