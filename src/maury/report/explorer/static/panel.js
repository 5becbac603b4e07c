// One panel: a density of stars over two columns, its view, its region, its cross.

import { drawOverlay, MARGIN } from "./axes.js";
import { Density } from "./density.js";
import { axisText, make, number } from "./dom.js";
import { inBox, inPolygon, project, unproject } from "./geometry.js";
import { listen } from "./gestures.js";

const PADDING = 0.05, REACH = 14;

export class Panel {
  constructor(host, spec, store, calls) {
    Object.assign(this, { id: spec.id, title: spec.title, sky: spec.id === "sky", store, calls });
    this.equal = spec.id === "sky" || spec.id === "map";
    this.region = null;
    this.cross = null;
    this.mask = new Uint8Array(store.n);
    this.build(host, spec);
    this.density = this.painter();
    this.setAxes(...spec.axes);
    listen(this);
    new ResizeObserver(() => this.resize()).observe(this.stage);
  }

  painter() { return new Density(this.canvas); }

  build(host, spec) {
    const title = make("h2", { id: `title-${spec.id}` }, spec.title);
    const button = (text, label, act) => make(
      "button", { type: "button", "aria-label": `${label}: ${spec.title}`, title: label, onclick: act },
      text,
    );
    const head = make("div", { class: "head" }, title);
    if (spec.choices) head.append(...spec.choices);
    head.append(make("span", { class: "spread" }),
      button("+", "Zoom in", () => this.zoom(0.6)),
      button("\u2212", "Zoom out", () => this.zoom(1 / 0.6)),
      button("all", "Show all", () => this.resetView()), this.saver(spec));
    this.canvas = make("canvas", { class: "density", "aria-hidden": "true" });
    this.overlay = make("canvas", {
      class: "overlay", tabIndex: 0, role: "application", "aria-labelledby": `title-${spec.id}`,
      "aria-describedby": "keys",
    });
    this.stage = make("div", { class: "stage" }, this.canvas, this.overlay);
    host.append(make("section", { class: "panel", id: `panel-${spec.id}` }, head, this.stage));
  }

  saver(spec) {
    const select = make("select", { class: "saver", "aria-label": `Save as figure: ${spec.title}` },
      ...[["", "save"], ["png", "PNG"], ["svg", "SVG"]].map(
        ([value, text]) => make("option", { value }, text)));
    select.addEventListener("change", () => {
      this.calls.save(select.value, this.id, () => this.figure());
      select.value = "";
    });
    return select;
  }

  // What a figure of this panel is made of, see saving.js.
  figure() {
    this.density.fresh = true;
    this.density.draw(this.store, { filters: true });
    const { width, height } = this.inner;
    return {
      size: this.size,
      paint: (pen) => {
        pen.drawImage(this.canvas, MARGIN.left, MARGIN.top, width, height);
        drawOverlay(this, pen);
      },
    };
  }

  setAxes(x, y) {
    const { info, columns } = this.store;
    this.axes = { x: info.get(x), y: info.get(y) };
    [this.xs, this.ys] = this.sky
      ? project(columns.get(x), columns.get(y)) : [columns.get(x), columns.get(y)];
    this.axisText = { x: axisText(this.axes.x), y: axisText(this.axes.y) };
    if (this.sky) this.axisText.x = "Galactic longitude l, latitude b [deg]";
    this.empty = this.store.n ? "" : "no rows";
    this.overlay.title = "";
    this.region = null;
    this.store.setRegion(this.id, null);
    this.resetView();
  }

  resetView() {
    this.home = this.spread();
    this.setView({ ...this.home });
  }

  spread() {
    return this.sky ? { x0: -2.83, x1: 2.83, y0: -1.415, y1: 1.415 }
      : { ...ends(this.axes.x, "x"), ...ends(this.axes.y, "y") };
  }

  get zoomed() { return Object.keys(this.home).some((end) => this.home[end] !== this.asked[end]); }

  setView(view) {
    this.asked = { ...view };
    this.view = this.equal && this.inner ? this.fitted(view) : view;
    if (!this.inner) return;
    this.density.locate(this.xs, this.ys, this.view);
    this.store.touch("look");
  }

  // Widens the shorter side, so that a unit is as long across as up.
  fitted(view) {
    const across = Math.abs(view.x1 - view.x0) / this.inner.width;
    const up = Math.abs(view.y1 - view.y0) / this.inner.height;
    const grow = (a, b, by) => {
      const middle = (a + b) / 2, half = ((b - a) / 2) * by;
      return [middle - half, middle + half];
    };
    const [x0, x1] = up > across ? grow(view.x0, view.x1, up / across) : [view.x0, view.x1];
    const [y0, y1] = across > up ? grow(view.y0, view.y1, across / up) : [view.y0, view.y1];
    return { x0, x1, y0, y1 };
  }

  zoom(by, at) {
    const { x0, x1, y0, y1 } = this.view;
    const [cx, cy] = at || (this.cross ? this.toData(this.cross.x, this.cross.y)
      : [(x0 + x1) / 2, (y0 + y1) / 2]);
    const about = (v, c) => c + (v - c) * by;
    this.setView({ x0: about(x0, cx), x1: about(x1, cx), y0: about(y0, cy), y1: about(y1, cy) });
  }

  pan(dx, dy) {
    const { view, inner } = this;
    const mx = (dx / inner.width) * (view.x1 - view.x0), my = (dy / inner.height) * (view.y1 - view.y0);
    this.setView({ x0: view.x0 - mx, x1: view.x1 - mx, y0: view.y0 + my, y1: view.y1 + my });
  }

  resize() {
    const box = this.stage.getBoundingClientRect();
    if (box.width < 80 || box.height < 80) return;
    this.size = { width: box.width, height: box.height };
    this.inner = {
      width: box.width - MARGIN.left - MARGIN.right, height: box.height - MARGIN.top - MARGIN.bottom,
    };
    this.ratio = window.devicePixelRatio || 1;
    this.overlay.width = Math.round(box.width * this.ratio);
    this.overlay.height = Math.round(box.height * this.ratio);
    const { style } = this.canvas;
    style.left = `${MARGIN.left}px`;
    style.top = `${MARGIN.top}px`;
    style.width = `${this.inner.width}px`;
    style.height = `${this.inner.height}px`;
    this.density.resize(this.inner.width, this.inner.height, this.ratio >= 1.5 ? 2 : 1);
    this.setView(this.asked);
  }

  toPixel(x, y) {
    const { view, inner } = this;
    return [MARGIN.left + ((x - view.x0) / (view.x1 - view.x0)) * inner.width,
      MARGIN.top + ((view.y1 - y) / (view.y1 - view.y0)) * inner.height];
  }

  toData(px, py) {
    const { view, inner } = this;
    return [view.x0 + ((px - MARGIN.left) / inner.width) * (view.x1 - view.x0),
      view.y1 - ((py - MARGIN.top) / inner.height) * (view.y1 - view.y0)];
  }

  inside(px, py) {
    return [Math.min(MARGIN.left + this.inner.width, Math.max(MARGIN.left, px)),
      Math.min(MARGIN.top + this.inner.height, Math.max(MARGIN.top, py))];
  }

  setRegion(region, stamp) {
    this.region = region;
    if (!region) this.store.setRegion(this.id, null, stamp);
    else {
      if (region.points) inPolygon(this.xs, this.ys, region.points, this.mask);
      else inBox(this.xs, this.ys, region, this.mask);
      this.store.setRegion(this.id, this.mask, stamp);
    }
  }

  // Returns the shown star nearest to a pixel, or null if none is near.
  nearest(px, py, reach = REACH) {
    const { xs, ys, view, inner } = this, { filtered, n } = this.store;
    const [x, y] = this.toData(px, py);
    const sx = inner.width / (view.x1 - view.x0), sy = inner.height / (view.y1 - view.y0);
    let best = reach * reach, row = null;
    for (let i = 0; i < n; i++) {
      if (!filtered[i]) continue;
      const dx = (xs[i] - x) * sx, dy = (ys[i] - y) * sy, far = dx * dx + dy * dy;
      if (far < best) { best = far; row = i; }
    }
    return row;
  }

  placeText(x, y) {
    if (this.sky) {
      const place = unproject(x, y);
      return place ? `l ${number(place[0], 1)}\u00b0, b ${number(place[1], 1)}\u00b0` : "";
    }
    return [[this.axes.x, x], [this.axes.y, y]].map(([column, value]) => {
      const digits = Math.max(0, Math.ceil(2 - Math.log10(Math.abs(column.high - column.low))));
      return number(value, Math.min(4, digits));
    }).join(", ");
  }

  draw(changed) {
    if (!this.inner) return;
    this.density.draw(this.store, changed);
    this.drawOver();
  }

  drawOver() {
    if (!this.inner) return;
    const pen = this.overlay.getContext("2d");
    pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    pen.clearRect(0, 0, this.size.width, this.size.height);
    drawOverlay(this, pen);
  }
}

function ends(column, name) {
  const pad = PADDING * (column.high - column.low);
  const [low, high] = [column.low - pad, column.high + pad];
  const [from, to] = column.reverse ? [high, low] : [low, high];
  return { [`${name}0`]: from, [`${name}1`]: to };
}

