// A panel of one column: how many stars there are of each value.

import { MARGIN } from "./axes.js";
import { shade, theme } from "./colours.js";
import { axisText, count, number } from "./dom.js";
import { inBox } from "./geometry.js";
import { Panel } from "./panel.js";

const BINS = 60, ABOVE = 1.08;

export class Histogram extends Panel {
  painter() { return new Bars(this); }

  setAxes(x) {
    super.setAxes(x, x);
    this.axisText.y = "stars in a bin";
  }

  // Its height is that of the highest bar, whatever is shown.
  spread() { return { ...super.spread(), y0: 0, y1: 1 }; }

  setRegion(region, stamp) {
    if (!region) { super.setRegion(null, stamp); return; }
    const ends = region.points ? region.points.map(([x]) => x) : [region.x0, region.x1];
    const [x0, x1] = [Math.min(...ends), Math.max(...ends)];
    this.region = { x0, x1, y0: -1e9, y1: 1e9 };
    inBox(this.xs, this.xs, { x0, x1, y0: x0, y1: x1 }, this.mask);
    this.store.setRegion(this.id, this.mask, stamp);
  }

  // A bar is no star.
  nearest() { return null; }

  placeText(x) {
    const { bins } = this.density;
    const k = Math.floor(((x - bins.low) / (bins.high - bins.low)) * BINS);
    return `${number(x, 3)}: ${count(bins.all[k] || 0)} stars, ${count(bins.chosen[k] || 0)} selected`;
  }

  axisTitle() { return axisText(this.axes.x); }
}

class Bars {
  constructor(panel) {
    this.panel = panel;
    this.pen = panel.canvas.getContext("2d");
    this.canvas = panel.canvas;
    this.bins = { low: 0, high: 1, all: new Uint32Array(BINS), chosen: new Uint32Array(BINS) };
  }

  resize(width, height, scale) {
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round(height * scale));
    this.scale = scale;
  }

  // Where a star lies is found as it is counted.
  locate() { this.fresh = true; }

  draw(store) {
    this.count(store);
    const { panel, pen, bins } = this;
    panel.view.y0 = 0;
    panel.view.y1 = ABOVE * Math.max(1, ...bins.all);
    pen.setTransform(this.scale, 0, 0, this.scale, 0, 0);
    pen.clearRect(0, 0, panel.inner.width, panel.inner.height);
    const [r, g, b] = theme.greys[0];
    const column = store.colour && store.columns.has(store.colour) && store.info.get(store.colour);
    for (let k = 0; k < BINS; k++) {
      this.bar(k, bins.all[k], `rgb(${r}, ${g}, ${b})`);
      const mean = (bins.sums[k] / bins.known[k] - column.dark) / (column.bright - column.dark);
      this.bar(k, bins.chosen[k], Number.isFinite(mean) ? shade(mean) : theme.bar);
    }
  }

  count(store) {
    const { view, xs } = this.panel, { filtered, selected, n } = store;
    const low = Math.min(view.x0, view.x1), high = Math.max(view.x0, view.x1);
    const all = new Uint32Array(BINS), chosen = new Uint32Array(BINS);
    const sums = new Float64Array(BINS), known = new Uint32Array(BINS);
    const values = store.colour && store.columns.get(store.colour), scale = BINS / (high - low);
    for (let i = 0; i < n; i++) {
      if (!filtered[i]) continue;
      const k = Math.floor((xs[i] - low) * scale);
      if (!(k >= 0 && k < BINS)) continue;
      all[k]++;
      if (!selected[i]) continue;
      chosen[k]++;
      if (values && values[i] === values[i]) { sums[k] += values[i]; known[k]++; }
    }
    this.bins = { low, high, all, chosen, sums, known };
  }

  bar(k, stars, colour) {
    if (!stars) return;
    const { panel, bins, pen } = this, wide = (bins.high - bins.low) / BINS;
    const [a, top] = panel.toPixel(bins.low + k * wide, stars);
    const [b, bottom] = panel.toPixel(bins.low + (k + 1) * wide, 0);
    pen.fillStyle = colour;
    pen.fillRect(Math.min(a, b) - MARGIN.left + 0.5, top - MARGIN.top, Math.abs(b - a) - 1, bottom - top);
  }
}
