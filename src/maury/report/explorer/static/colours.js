// Colour scales that everyone can tell apart: viridis, and greys for what is not selected.

const VIRIDIS = [
  [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129],
  [92, 200, 99], [170, 220, 50], [253, 231, 37],
];
const GREYS = [[214, 216, 222], [122, 126, 138]];
const SIZE = 256;

function ramp(stops) {
  const table = new Uint32Array(SIZE);
  for (let i = 0; i < SIZE; i++) {
    const place = (i / (SIZE - 1)) * (stops.length - 1);
    const k = Math.min(stops.length - 2, Math.floor(place));
    const [r, g, b] = stops[k].map((v, c) => Math.round(v + (place - k) * (stops[k + 1][c] - v)));
    table[i] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return table;
}

export const viridis = ramp(VIRIDIS);
export const greys = ramp(GREYS);

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
  words.forEach((_, i) => { words[i] = viridis[Math.floor((i / canvas.width) * SIZE)]; });
  for (let y = 0; y < canvas.height; y++) pen.putImageData(image, 0, y);
}
