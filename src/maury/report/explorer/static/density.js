// Counts stars per pixel and paints them: all stars that pass in grey, the selected in colour.

import { logSteps, theme } from "./colours.js";

export class Density {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.place = null;
  }

  resize(width, height, scale) {
    this.width = Math.max(1, Math.round(width * scale));
    this.height = Math.max(1, Math.round(height * scale));
    this.scale = scale;
    this.canvas.width = this.width;
    this.canvas.height = this.height;
    const size = this.width * this.height;
    this.all = new Uint32Array(size);
    this.chosen = new Uint32Array(size);
    this.sums = new Float64Array(size);
    this.image = this.pen.createImageData(this.width, this.height);
    this.words = new Uint32Array(this.image.data.buffer);
    this.fresh = true;
  }

  // Finds the pixel of every star; -1 outside the view or where a value is missing.
  locate(xs, ys, view) {
    const n = xs.length, { width, height } = this;
    if (!this.place || this.place.length !== n) this.place = new Int32Array(n);
    const { place } = this;
    const sx = width / (view.x1 - view.x0), sy = height / (view.y1 - view.y0);
    let seen = 0;
    for (let i = 0; i < n; i++) {
      const x = (xs[i] - view.x0) * sx, y = (view.y1 - ys[i]) * sy;
      if (x >= 0 && x < width && y >= 0 && y < height) {
        place[i] = (y | 0) * width + (x | 0);
        seen++;
      } else place[i] = -1;
    }
    this.seen = seen;
    this.fresh = true;
  }

  // Few stars get larger dots, so that none is overlooked.
  dot(shown) {
    const seen = Math.min(shown, this.seen);
    const css = seen < 300 ? 4 : seen < 6000 ? 3 : seen < 60000 ? 2 : 1;
    return Math.max(1, Math.round(css * this.scale));
  }

  count(counts, mask, dot) {
    const { place } = this, n = place.length;
    counts.fill(0);
    if (dot === 1) {
      for (let i = 0; i < n; i++) if (mask[i] && place[i] >= 0) counts[place[i]]++;
      return;
    }
    this.eachDot(mask, dot, (pixel) => { counts[pixel]++; });
  }

  eachDot(mask, dot, paint) {
    const { place, width, height } = this, n = place.length;
    const before = dot >> 1;
    for (let i = 0; i < n; i++) {
      if (!mask[i] || place[i] < 0) continue;
      const column = place[i] % width, row = (place[i] - column) / width;
      const left = Math.max(0, column - before), right = Math.min(width, column - before + dot);
      const top = Math.max(0, row - before), bottom = Math.min(height, row - before + dot);
      for (let y = top; y < bottom; y++) {
        for (let x = left; x < right; x++) paint(y * width + x, i);
      }
    }
  }

  draw(store, changed) {
    if (!this.place) return;
    const some = store.nSelected !== store.nFiltered;
    if (some && (this.fresh || changed.filters || !this.hasAll)) {
      this.count(this.all, store.filtered, this.dot(store.nFiltered));
      this.hasAll = true;
    }
    if (!some && (this.fresh || changed.filters)) this.hasAll = false;
    this.fresh = false;
    const dot = this.dot(store.nSelected);
    this.count(this.chosen, store.selected, dot);
    const { words, all, chosen } = this;
    if (some) this.shade(all, theme.grey);
    else words.fill(0);
    const values = store.colour && store.columns.get(store.colour);
    if (values) this.shadeMean(store, values, dot);
    else {
      const steps = logSteps(largest(chosen));
      for (let k = 0; k < words.length; k++) if (chosen[k]) words[k] = theme.viridis[steps[chosen[k]]];
    }
    this.pen.putImageData(this.image, 0, 0);
  }

  shade(counts, table) {
    const steps = logSteps(largest(counts)), { words } = this;
    for (let k = 0; k < words.length; k++) words[k] = counts[k] ? table[steps[counts[k]]] : 0;
  }

  // Colours a pixel by the mean of its selected stars.
  shadeMean(store, values, dot) {
    const { sums, words } = this, known = this.all.slice().fill(0);
    const { dark, bright } = store.info.get(store.colour);
    sums.fill(0);
    this.eachDot(store.selected, dot, (pixel, i) => {
      if (values[i] === values[i]) { sums[pixel] += values[i]; known[pixel]++; }
    });
    const scale = 255 / (bright - dark);
    for (let k = 0; k < words.length; k++) {
      if (!known[k]) continue;
      const step = (sums[k] / known[k] - dark) * scale;
      words[k] = theme.viridis[step < 0 ? 0 : step > 255 ? 255 : step | 0];
    }
  }
}

function largest(counts) {
  let most = 0;
  for (let k = 0; k < counts.length; k++) if (counts[k] > most) most = counts[k];
  return most;
}
