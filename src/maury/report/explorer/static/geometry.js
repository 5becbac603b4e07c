// Ticks, the projection of the sky, and which stars lie within a drawn region.

export function ticks(from, to, about) {
  const low = Math.min(from, to), high = Math.max(from, to), span = high - low;
  if (!(span > 0) || !Number.isFinite(span)) return { at: [], digits: 0 };
  const rough = span / Math.max(2, about), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999);
  let digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  if (Math.abs(step / 10 ** -digits - Math.round(step / 10 ** -digits)) > 1e-6) digits++;
  const at = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * span; k++) at.push(k * step);
  return { at, digits };
}

const ROOT = Math.SQRT2, RADIAN = Math.PI / 180;

// Hammer's equal-area projection, the Galactic centre in the middle, longitude to the left.
export function hammer(l, b) {
  const half = ((l > 180 ? l - 360 : l) * RADIAN) / 2, lat = b * RADIAN;
  const depth = Math.sqrt(1 + Math.cos(lat) * Math.cos(half));
  return [(-2 * ROOT * Math.cos(lat) * Math.sin(half)) / depth, (ROOT * Math.sin(lat)) / depth];
}

export function project(ls, bs) {
  const xs = new Float32Array(ls.length), ys = new Float32Array(ls.length);
  for (let i = 0; i < ls.length; i++) [xs[i], ys[i]] = hammer(ls[i], bs[i]);
  return [xs, ys];
}

export function unproject(x, y) {
  const z2 = 1 - (x / 4) ** 2 - (y / 2) ** 2;
  if (z2 < 0.5 - 1e-9) return null;
  const z = Math.sqrt(z2);
  const l = (2 * Math.atan2(-z * x, 2 * (2 * z2 - 1))) / RADIAN;
  return [(l + 360) % 360, Math.asin(Math.min(1, Math.max(-1, z * y))) / RADIAN];
}

export function inBox(xs, ys, box, mask) {
  const left = Math.min(box.x0, box.x1), right = Math.max(box.x0, box.x1);
  const low = Math.min(box.y0, box.y1), high = Math.max(box.y0, box.y1);
  for (let i = 0; i < xs.length; i++) {
    const x = xs[i], y = ys[i];
    mask[i] = x >= left && x <= right && y >= low && y <= high ? 1 : 0;
  }
  return mask;
}

export function inPolygon(xs, ys, points, mask) {
  const px = points.map((p) => p[0]), py = points.map((p) => p[1]), m = points.length;
  const box = { x0: Math.min(...px), x1: Math.max(...px), y0: Math.min(...py), y1: Math.max(...py) };
  inBox(xs, ys, box, mask);
  for (let i = 0; i < xs.length; i++) {
    if (!mask[i]) continue;
    const x = xs[i], y = ys[i];
    let inside = false;
    for (let j = 0, k = m - 1; j < m; k = j++) {
      if (py[j] > y !== py[k] > y && x < ((px[k] - px[j]) * (y - py[j])) / (py[k] - py[j]) + px[j]) {
        inside = !inside;
      }
    }
    mask[i] = inside ? 1 : 0;
  }
  return mask;
}
