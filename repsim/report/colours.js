// Colours of lines and marks; those of heatmaps come with the numbers.

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
