// Draws what lies over the density: axes, graticule, regions, cross, marked star.

import { theme } from "./colours.js";
import { number } from "./dom.js";
import { hammer, ticks } from "./geometry.js";

export const MARGIN = { left: 52, right: 12, top: 10, bottom: 40 };
const FONT = "12px system-ui, sans-serif";

export function drawOverlay(panel, pen) {
  pen.font = FONT;
  if (panel.sky) graticule(pen, panel);
  else frame(pen, panel);
  pen.save();
  pen.beginPath();
  pen.rect(MARGIN.left, MARGIN.top, panel.inner.width, panel.inner.height);
  pen.clip();
  if (panel.region) outline(pen, panel);
  if (panel.store.star !== null) ring(pen, panel);
  if (panel.cross) cross(pen, panel);
  pen.restore();
  if (panel.empty) note(pen, panel, panel.empty);
}

function frame(pen, panel) {
  const { view, inner } = panel;
  const right = MARGIN.left + inner.width, bottom = MARGIN.top + inner.height;
  pen.strokeStyle = pen.fillStyle = theme.ink;
  pen.lineWidth = 1;
  pen.strokeRect(MARGIN.left + 0.5, MARGIN.top + 0.5, inner.width - 1, inner.height - 1);
  pen.textAlign = "center";
  pen.textBaseline = "top";
  const across = ticks(view.x0, view.x1, inner.width / 75);
  for (const value of across.at) {
    const x = Math.round(panel.toPixel(value, view.y0)[0]) + 0.5;
    line(pen, x, bottom, x, bottom - 5);
    pen.fillText(number(value, across.digits), x, bottom + 5);
  }
  pen.fillText(panel.axisText.x, MARGIN.left + inner.width / 2, bottom + 22);
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  const up = ticks(view.y0, view.y1, inner.height / 50);
  for (const value of up.at) {
    const y = Math.round(panel.toPixel(view.x0, value)[1]) + 0.5;
    line(pen, MARGIN.left, y, MARGIN.left + 5, y);
    line(pen, right, y, right - 5, y);
    pen.fillText(number(value, up.digits), MARGIN.left - 5, y);
  }
  pen.save();
  pen.translate(12, MARGIN.top + inner.height / 2);
  pen.rotate(-Math.PI / 2);
  pen.textAlign = "center";
  pen.fillText(panel.axisText.y, 0, 0);
  pen.restore();
}

function graticule(pen, panel) {
  const { inner } = panel;
  const curve = (points) => {
    pen.beginPath();
    points.forEach(([l, b], k) => {
      const [x, y] = panel.toPixel(...hammer(l, b));
      if (k) pen.lineTo(x, y);
      else pen.moveTo(x, y);
    });
    pen.stroke();
  };
  pen.save();
  pen.beginPath();
  pen.rect(0, 0, panel.size.width, MARGIN.top + inner.height);
  pen.clip();
  const range = (from, to, step) =>
    Array.from({ length: Math.round((to - from) / step) + 1 }, (_, k) => from + k * step);
  pen.lineWidth = 1;
  pen.strokeStyle = theme.grid;
  for (const l of range(-120, 120, 60)) curve(range(-90, 90, 3).map((b) => [l, b]));
  for (const b of range(-60, 60, 30)) curve(range(-180, 180, 4).map((l) => [l, b]));
  pen.strokeStyle = theme.ink;
  for (const l of [-180, 180]) curve(range(-90, 90, 2).map((b) => [l, b]));
  pen.fillStyle = theme.ink;
  pen.textBaseline = "middle";
  pen.lineWidth = 3;
  pen.strokeStyle = theme.halo;
  const label = (text, x, y) => {
    pen.strokeText(text, x, y);
    pen.fillText(text, x, y);
  };
  pen.textAlign = "center";
  for (const l of [120, 60, 0, 300, 240]) label(`${l}\u00b0`, ...panel.toPixel(...hammer(l, 0)));
  for (const b of [-60, -30, 30, 60]) {
    const [x, y] = panel.toPixel(...hammer(180, b));
    pen.textAlign = "right";
    label(`${number(b)}\u00b0`, x - 5, y);
  }
  pen.restore();
  pen.fillStyle = theme.ink;
  pen.textAlign = "center";
  pen.textBaseline = "top";
  pen.fillText(panel.axisText.x, MARGIN.left + inner.width / 2, MARGIN.top + inner.height + 22);
}

function outline(pen, panel) {
  pen.beginPath();
  if (panel.region.points) {
    panel.region.points.forEach(([x, y], k) => {
      const place = panel.toPixel(x, y);
      if (k) pen.lineTo(...place);
      else pen.moveTo(...place);
    });
    pen.closePath();
  } else {
    const { x0, x1, y0, y1 } = panel.region;
    const [left, top] = panel.toPixel(x0, y0), [right, bottom] = panel.toPixel(x1, y1);
    pen.rect(left, top, right - left, bottom - top);
  }
  pen.lineWidth = 3.5;
  pen.strokeStyle = theme.halo;
  pen.stroke();
  pen.lineWidth = 1.75;
  pen.strokeStyle = theme.region;
  pen.stroke();
}

function ring(pen, panel) {
  const [x, y] = panel.toPixel(panel.xs[panel.store.star], panel.ys[panel.store.star]);
  if (!Number.isFinite(x) || !Number.isFinite(y)) return;
  for (const [width, colour] of [[5, theme.halo], [2.25, theme.region]]) {
    pen.beginPath();
    pen.arc(x, y, 8, 0, 2 * Math.PI);
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.stroke();
  }
}

function cross(pen, panel) {
  const { x, y } = panel.cross;
  pen.lineWidth = 1;
  pen.strokeStyle = theme.ink;
  line(pen, x - 12, y, x + 12, y);
  line(pen, x, y - 12, x, y + 12);
  const [dx, dy] = panel.toData(x, y);
  const text = panel.placeText(dx, dy);
  pen.textAlign = "right";
  pen.textBaseline = "top";
  pen.lineWidth = 4;
  pen.strokeStyle = theme.halo;
  const place = [MARGIN.left + panel.inner.width - 8, MARGIN.top + 8];
  pen.strokeText(text, ...place);
  pen.fillStyle = theme.ink;
  pen.fillText(text, ...place);
}

function note(pen, panel, text) {
  pen.fillStyle = theme.faint;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText(text, MARGIN.left + panel.inner.width / 2, MARGIN.top + panel.inner.height / 2);
}

function line(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}
