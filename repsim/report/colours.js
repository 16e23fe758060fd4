// Colours, as in the figures of `repsim heatmap`: magma from 0 on, green below it.

const MAGMA = [
  "#000004", "#030312", "#0a0822", "#130d34", "#1d1147", "#29115a", "#36106b", "#440f76", "#51127c", "#5d177f", "#6a1c81",
  "#762181", "#832681", "#902a81", "#9c2e7f", "#aa337d", "#b73779", "#c43c75", "#d0416f", "#dc4869", "#e75263", "#ef5d5e",
  "#f56b5c", "#f9795d", "#fc8961", "#fd9869", "#fea772", "#feb67c", "#fec488", "#fed395", "#fde2a3", "#fcf0b2", "#fcfdbf",
];
const GREEN = [[201, 247, 228], [10, 74, 58]]; // from the lowest value up to 0
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down"];
const DASHES = ["solid", "dash", "dot", "dashdot"];

const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const hues = () => ["first", "second", "third", "fourth"].map(token);
const faded = (hex, alpha) => `rgba(${[1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)).join(",")},${alpha})`;

function extremes(values) {
  let least = Infinity;
  let most = -Infinity;
  for (const value of values) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  return least <= most ? [least, most] : [0, 1];
}

// The range that a measure declares, never that of the data; only an infinite bound is replaced by the data's.
// Of what lies below 0 as much is shown as there is, in tenths of the range.
function scaleOf(values, [lowest, highest], distance) {
  const [least, most] = extremes(values);
  const high = highest ?? Math.max(most, 0);
  const low = lowest ?? Math.min(least, 0);
  const magma = MAGMA.map((colour, k) => [k / (MAGMA.length - 1), colour]);
  if (distance || !(low < 0 && high > 0)) {
    const colours = distance ? magma.map(([at], k) => [at, MAGMA[MAGMA.length - 1 - k]]) : magma;
    return { zmin: low, zmax: high > low ? high : low + 1, colorscale: colours };
  }
  const shown = least < 0 ? Math.max(low, (Math.floor((least / -low) * 10) / 10) * -low) : 0;
  if (shown === 0) return { zmin: 0, zmax: high, colorscale: magma };
  const zero = -shown / (high - shown);
  const end = GREEN[1];
  const start = GREEN[0].map((from, k) => Math.round(end[k] + (from - end[k]) * (shown / low)));
  return {
    zmin: shown,
    zmax: high,
    colorscale: [[0, `rgb(${start})`], [zero, `rgb(${end})`], ...magma.map(([at, colour]) => [zero + at * (1 - zero), colour])],
  };
}

// From 0 to 1 to a colour of a scale.
function painterOf(colorscale) {
  const steps = 512;
  const strip = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  strip.canvas.width = steps;
  const ramp = strip.createLinearGradient(0, 0, steps, 0);
  for (const [at, colour] of colorscale) ramp.addColorStop(Math.min(at, 1), colour);
  strip.fillStyle = ramp;
  strip.fillRect(0, 0, steps, 1);
  const { data } = strip.getImageData(0, 0, steps, 1);
  return (share) => {
    const k = 4 * Math.round(Math.min(Math.max(share, 0), 1) * (steps - 1));
    return `rgb(${data[k]},${data[k + 1]},${data[k + 2]})`;
  };
}

function layoutOf(more) {
  const axis = { ticklabeloverflow: "allow", color: token("soft"), gridcolor: token("line"), zerolinecolor: token("soft"), linecolor: token("soft") };
  const made = {
    font: { family: token("sans"), size: 12, color: token("ink") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 50, r: 16, t: 12, b: 46 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: token("soft"), activecolor: token("accent") },
    hoverlabel: { font: { family: token("sans"), color: token("ink") }, bgcolor: token("sheet"), bordercolor: token("soft"), align: "left" },
    ...more,
  };
  for (const name of Object.keys(made).filter((key) => /^[xy]axis\d*$/.test(key))) made[name] = { ...axis, ...made[name] };
  return made;
}

const CONFIG = {
  displaylogo: false,
  showLink: false,
  plotlyServerURL: "",
  responsive: false,
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]], // and none that leads to a server
  toImageButtonOptions: { format: "svg", filename: "repsim" },
};
