// Colours and styles of lines and marks; the colours of heatmaps are part of the data.

const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down"];
const DASHES = ["solid", "dash", "dot", "dashdot"];

const cssVariable = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const lineColours = () => ["first", "second", "third", "fourth"].map(cssVariable);
const withAlpha = (hex, alpha) => `rgba(${[1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)).join(",")},${alpha})`;

function extremes(values) {
  let least = Infinity;
  let most = -Infinity;
  for (const value of values) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  return least <= most ? [least, most] : [0, 1];
}

// Returns a function from [0, 1] to the colours of a scale.
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
  const axis = { ticklabeloverflow: "allow", color: cssVariable("soft"), gridcolor: cssVariable("line"), zerolinecolor: cssVariable("soft"), linecolor: cssVariable("soft") };
  const layout = {
    font: { family: cssVariable("sans"), size: 12, color: cssVariable("ink") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 50, r: 16, t: 12, b: 46 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: cssVariable("soft"), activecolor: cssVariable("accent") },
    hoverlabel: { font: { family: cssVariable("sans"), color: cssVariable("ink") }, bgcolor: cssVariable("sheet"), bordercolor: cssVariable("soft"), align: "left" },
    ...more,
  };
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) layout[name] = { ...axis, ...layout[name] };
  return layout;
}

const CONFIG = {
  displaylogo: false,
  showLink: false,
  plotlyServerURL: "",
  responsive: false,
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]], // without the buttons that open a web page
  toImageButtonOptions: { format: "svg", filename: "repsim" },
};
