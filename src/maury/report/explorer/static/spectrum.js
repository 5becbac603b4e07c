// Draws strips over one wavelength axis: flux and fit, residual, derivative of a label.

import { theme } from "./colours.js";
import { number } from "./dom.js";
import { ticks } from "./geometry.js";

const LEFT = 50, RIGHT = 10, TOP = 16, BOTTOM = 36, GAP = 12;
const STRONG = ["Ca II"], MOST_GUIDES = 16;
const FONT = "11px system-ui, sans-serif";
const STYLES = {
  flux: { width: 1 }, fit: { width: 1.6 }, network: { width: 1.4 },
  optimal: { width: 1.2, dash: [4, 3] },
};

export class SpectrumPlot {
  constructor(canvas) {
    this.canvas = canvas;
    this.data = null;
    this.listen();
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
  }

  show(data) {
    const same = this.data && this.data.wave.length === data.wave.length;
    this.data = data;
    if (!same || !this.range) this.resetRange();
    this.draw();
  }

  resetRange() {
    const { wave } = this.data;
    this.range = [wave[0], wave[wave.length - 1]];
  }

  zoom(by, middle = (this.range[0] + this.range[1]) / 2) {
    const { wave } = this.data, first = wave[0], last = wave[wave.length - 1];
    const next = this.range.map((edge) => middle + (edge - middle) * by);
    if (next[1] - next[0] < 4) return;
    this.range = [Math.max(first, next[0]), Math.min(last, next[1])];
    this.draw();
  }

  shift(part) {
    const { wave } = this.data, span = this.range[1] - this.range[0];
    const low = Math.min(Math.max(this.range[0] + part * span, wave[0]), wave[wave.length - 1] - span);
    this.range = [low, low + span];
    this.draw();
  }

  listen() {
    const { canvas } = this;
    let from = null;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return this.range[0]
        + ((event.clientX - box.left - LEFT) / this.plotWidth) * (this.range[1] - this.range[0]);
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.data || event.pointerType === "touch") return;
      from = at(event);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (from === null) return;
      this.band = [from, at(event)];
      this.draw();
    });
    canvas.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const to = at(event);
      if (Math.abs(to - from) > 3) this.range = [Math.min(from, to), Math.max(from, to)];
      from = this.band = null;
      this.zoom(1);
      this.draw();
    });
    canvas.addEventListener("dblclick", () => { if (this.data) { this.resetRange(); this.draw(); } });
    canvas.addEventListener("keydown", (event) => {
      const acts = {
        "+": () => this.zoom(0.6), "=": () => this.zoom(0.6), "-": () => this.zoom(1 / 0.6),
        ArrowLeft: () => this.shift(-0.2), ArrowRight: () => this.shift(0.2),
        0: () => { this.resetRange(); this.draw(); },
      };
      if (!this.data || !acts[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      acts[event.key]();
      event.preventDefault();
    });
  }

  draw() {
    const { canvas, data } = this, box = canvas.getBoundingClientRect();
    if (!data || box.width < 100) return;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(box.width * ratio);
    canvas.height = Math.round(box.height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    this.paint(pen, box);
  }

  // What a figure of this spectrum is made of, see saving.js.
  figure() {
    const box = this.canvas.getBoundingClientRect();
    const size = { width: box.width, height: box.height };
    return { size, paint: (pen) => this.paint(pen, size) };
  }

  paint(pen, box) {
    const { data } = this;
    pen.font = FONT;
    this.plotWidth = box.width - LEFT - RIGHT;
    const weights = data.strips.map((strip) => strip.weight);
    const total = weights.reduce((a, b) => a + b, 0);
    const room = box.height - TOP - BOTTOM - GAP * (weights.length - 1);
    let top = TOP;
    data.strips.forEach((strip, k) => {
      const height = (room * weights[k]) / total;
      this.strip(pen, strip, { top, height });
      top += height + GAP;
    });
    this.bottom(pen, box.height - BOTTOM);
    this.lines(pen, box.height - BOTTOM);
    if (this.band) {
      const [a, b] = this.band.map((w) => this.x(w));
      pen.fillStyle = theme.band;
      pen.fillRect(a, TOP, b - a, box.height - BOTTOM - TOP);
    }
  }

  x(wave) {
    return LEFT + ((wave - this.range[0]) / (this.range[1] - this.range[0])) * this.plotWidth;
  }

  strip(pen, strip, { top, height }) {
    const { wave } = this.data;
    const shown = strip.curves.flatMap((curve) => curve.values.filter(
      (v, i) => v !== null && wave[i] >= this.range[0] && wave[i] <= this.range[1]));
    let low = Math.min(...shown), high = Math.max(...shown);
    if (!shown.length) [low, high] = [0, 1];
    if (strip.about !== undefined) {
      const half = Math.max(high - strip.about, strip.about - low, strip.least || 0);
      [low, high] = [strip.about - half, strip.about + half];
    }
    const pad = 0.06 * (high - low) || 0.5;
    [low, high] = [low - pad, high + pad];
    const y = (v) => top + ((high - v) / (high - low)) * height;
    pen.strokeStyle = pen.fillStyle = theme.ink;
    pen.lineWidth = 1;
    pen.setLineDash([]);
    pen.strokeRect(LEFT + 0.5, Math.round(top) + 0.5, this.plotWidth - 1, height);
    const marks = ticks(low, high, height / 34);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const value of marks.at) {
      const place = Math.round(y(value)) + 0.5;
      segment(pen, LEFT, place, LEFT + 4, place);
      pen.fillText(number(value, marks.digits), LEFT - 4, place);
    }
    pen.save();
    pen.translate(10, top + height / 2);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "center";
    pen.fillText(strip.text, 0, 0);
    pen.restore();
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, top, this.plotWidth, height);
    pen.clip();
    if (strip.about !== undefined) {
      pen.strokeStyle = theme.zero;
      segment(pen, LEFT, y(strip.about), LEFT + this.plotWidth, y(strip.about));
    }
    for (const curve of strip.curves) {
      if (curve.error) this.shade(pen, curve, y);
      this.curve(pen, curve, y);
    }
    pen.restore();
  }

  curve(pen, curve, y) {
    const { wave } = this.data, style = STYLES[curve.style];
    pen.strokeStyle = theme[curve.style];
    pen.lineWidth = style.width;
    pen.setLineDash(style.dash || []);
    pen.beginPath();
    let down = false;
    curve.values.forEach((v, i) => {
      if (v === null) { down = false; return; }
      if (down) pen.lineTo(this.x(wave[i]), y(v));
      else pen.moveTo(this.x(wave[i]), y(v));
      down = true;
    });
    pen.stroke();
    pen.setLineDash([]);
  }

  shade(pen, curve, y) {
    const { wave } = this.data;
    pen.strokeStyle = theme.shade;
    pen.lineWidth = Math.max(1, this.plotWidth / wave.length + 0.3);
    pen.beginPath();
    curve.values.forEach((v, i) => {
      const e = curve.error[i];
      if (v === null || e === null) return;
      pen.moveTo(this.x(wave[i]), y(v + e));
      pen.lineTo(this.x(wave[i]), y(v - e));
    });
    pen.stroke();
  }

  bottom(pen, bottom) {
    const marks = ticks(this.range[0], this.range[1], this.plotWidth / 70);
    pen.fillStyle = pen.strokeStyle = theme.ink;
    pen.lineWidth = 1;
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const value of marks.at) {
      const x = Math.round(this.x(value)) + 0.5;
      segment(pen, x, bottom, x, bottom - 4);
      pen.fillText(number(value, marks.digits), x, bottom + 4);
    }
    pen.fillText(`Wavelength in ${this.data.medium} [\u00c5]`, LEFT + this.plotWidth / 2, bottom + 19);
  }

  // Marks known lines above the strips; the strongest are named first where names would collide.
  lines(pen, bottom) {
    const marks = Object.entries(this.data.lines)
      .flatMap(([name, places]) => places.map((wave) => [wave, name]))
      .filter(([wave]) => wave > this.range[0] && wave < this.range[1])
      .sort((a, b) => STRONG.includes(b[1]) - STRONG.includes(a[1]) || a[0] - b[0]);
    const taken = [];
    pen.strokeStyle = pen.fillStyle = theme.line;
    pen.textAlign = "center";
    pen.textBaseline = "bottom";
    pen.lineWidth = 1;
    for (const [wave, name] of marks) {
      const x = this.x(wave), half = 4 + 3.2 * name.length;
      segment(pen, x, TOP, x, TOP + 7);
      if (taken.some(([at, wide]) => Math.abs(x - at) < half + wide)) continue;
      pen.fillText(name, x, TOP - 2);
      taken.push([x, half]);
    }
    if (marks.length > MOST_GUIDES) return;
    pen.strokeStyle = theme.guide;
    pen.setLineDash([2, 3]);
    for (const [wave] of marks) segment(pen, this.x(wave), TOP + 7, this.x(wave), bottom);
    pen.setLineDash([]);
  }
}

function segment(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}
