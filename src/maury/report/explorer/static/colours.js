// Colours of the page's drawings, light and dark, and scales that everyone can tell apart: viridis
// for what is selected, greys for what is not.

const PALETTES = {
  light: {
    ink: "#1c1f26", faint: "#6b7180", paper: "#ffffff", halo: "rgba(255, 255, 255, 0.9)",
    region: "#d55e00", grid: "rgba(90, 96, 110, 0.35)", bar: "#0072b2", zero: "#9aa0ad",
    line: "#0b5a8a", guide: "rgba(0, 114, 178, 0.35)", band: "rgba(0, 114, 178, 0.15)",
    shade: "rgba(28, 31, 38, 0.16)", flux: "#1c1f26", fit: "#d55e00", network: "#0072b2",
    optimal: "#8a6d00", greys: [[214, 216, 222], [122, 126, 138]], darkest: 0,
  },
  dark: {
    ink: "#e4e7ee", faint: "#99a1b3", paper: "#171a21", halo: "rgba(23, 26, 33, 0.9)",
    region: "#ff9a4d", grid: "rgba(150, 158, 175, 0.35)", bar: "#56b4e9", zero: "#6d7585",
    line: "#7cc4f5", guide: "rgba(86, 180, 233, 0.4)", band: "rgba(86, 180, 233, 0.2)",
    shade: "rgba(228, 231, 238, 0.2)", flux: "#e4e7ee", fit: "#ff9a4d", network: "#56b4e9",
    // The darkest quarter of viridis cannot be told from a dark page.
    optimal: "#e8c400", greys: [[58, 63, 75], [124, 131, 147]], darkest: 0.25,
  },
};
const VIRIDIS = [
  [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129],
  [92, 200, 99], [170, 220, 50], [253, 231, 37],
];
const SIZE = 256;

function ramp(stops, from = 0) {
  const table = new Uint32Array(SIZE);
  for (let i = 0; i < SIZE; i++) {
    const place = (from + (1 - from) * (i / (SIZE - 1))) * (stops.length - 1);
    const k = Math.min(stops.length - 2, Math.floor(place));
    const [r, g, b] = stops[k].map((v, c) => Math.round(v + (place - k) * (stops[k + 1][c] - v)));
    table[i] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return table;
}

// What is drawn with now.
export const theme = { name: "light" };

export function use(name) {
  Object.assign(theme, PALETTES[name], { name });
  theme.viridis = ramp(VIRIDIS, theme.darkest);
  theme.grey = ramp(theme.greys);
}

use("light");

// A colour of viridis, between 0 and 1, as text.
export function shade(part) {
  const step = Math.min(SIZE - 1, Math.max(0, Math.floor(part * SIZE)));
  const word = theme.viridis[step];
  return `rgb(${word & 255}, ${(word >> 8) & 255}, ${(word >> 16) & 255})`;
}

// Steps of a logarithmic scale, by count.
export function logSteps(most) {
  const steps = new Uint8Array(most + 1);
  const scale = most > 1 ? (SIZE - 1) / Math.log(most) : 0;
  for (let k = 1; k <= most; k++) steps[k] = Math.round(Math.log(k) * scale);
  return steps;
}

export function drawRamp(canvas) {
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(canvas.width, 1);
  const words = new Uint32Array(image.data.buffer);
  words.forEach((_, i) => { words[i] = theme.viridis[Math.floor((i / canvas.width) * SIZE)]; });
  for (let y = 0; y < canvas.height; y++) pen.putImageData(image, 0, y);
}
