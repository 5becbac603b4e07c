// Mouse, touch and keyboard of a panel.

import { MARGIN } from "./axes.js";

const CLICK = 4, STEP = 12;

let mode = "box";

export const getMode = () => mode;

export function setMode(name, panels) {
  mode = name;
  for (const panel of panels) {
    panel.overlay.style.touchAction = name === "look" ? "pan-x pan-y pinch-zoom" : "none";
    panel.overlay.style.cursor = name === "move" ? "grab" : name === "look" ? "default" : "crosshair";
  }
}

export function listen(panel) {
  const { overlay } = panel;
  let drag = null;
  const place = (event) => {
    const box = overlay.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  overlay.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || drag) return;
    drag = { from: place(event), last: place(event), points: [], moved: false, mode };
    if (mode !== "look") overlay.setPointerCapture(event.pointerId);
  });
  overlay.addEventListener("pointermove", (event) => {
    const here = place(event);
    if (!drag) return;
    if (!drag.moved && Math.hypot(here[0] - drag.from[0], here[1] - drag.from[1]) < CLICK) return;
    drag.moved = true;
    panel.cross = null;
    move(panel, drag, here, event.timeStamp);
  });
  overlay.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) click(panel, place(event), event.timeStamp);
    drag = null;
  });
  overlay.addEventListener("pointercancel", () => { drag = null; });
  overlay.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey && mode !== "move") return;
    event.preventDefault();
    panel.zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, panel.toData(...place(event)));
  }, { passive: false });
  overlay.addEventListener("keydown", (event) => key(panel, event));
  overlay.addEventListener("blur", () => {
    panel.cross = null;
    panel.anchor = null;
    panel.drawOver();
  });
}

function move(panel, drag, here, stamp) {
  if (drag.mode === "look") return;
  if (drag.mode === "move") {
    panel.pan(here[0] - drag.last[0], here[1] - drag.last[1]);
    drag.last = here;
    return;
  }
  const inside = panel.inside(...here);
  if (drag.mode === "box") {
    panel.setRegion(box(panel, panel.inside(...drag.from), inside), stamp);
    return;
  }
  const last = drag.pixel || drag.from;
  if (drag.points.length && Math.hypot(inside[0] - last[0], inside[1] - last[1]) < CLICK) return;
  if (!drag.points.length) drag.points.push(panel.toData(...panel.inside(...drag.from)));
  drag.pixel = inside;
  drag.points.push(panel.toData(...inside));
  if (drag.points.length > 2) panel.setRegion({ points: drag.points }, stamp);
}

function box(panel, from, to) {
  const [x0, y0] = panel.toData(...from), [x1, y1] = panel.toData(...to);
  return { x0, y0, x1, y1 };
}

function click(panel, here, stamp) {
  const row = panel.nearest(...here);
  if (row !== null) panel.calls.open(row);
  else if (panel.region) panel.setRegion(null, stamp);
}

function key(panel, event) {
  if (event.altKey || event.ctrlKey || event.metaKey || !panel.inner) return;
  const { inner } = panel;
  panel.cross ??= { x: MARGIN.left + inner.width / 2, y: MARGIN.top + inner.height / 2 };
  const step = event.shiftKey ? 1 : STEP;
  const moves = {
    ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step],
  };
  const acts = {
    Enter: () => open(panel),
    " ": () => { panel.anchor = panel.anchor ? null : { ...panel.cross }; },
    "+": () => panel.zoom(0.6),
    "=": () => panel.zoom(0.6),
    "-": () => panel.zoom(1 / 0.6),
    0: () => panel.resetView(),
    Escape: () => { panel.anchor = null; panel.setRegion(null, event.timeStamp); },
  };
  if (moves[event.key]) {
    const [dx, dy] = moves[event.key];
    const [x, y] = panel.inside(panel.cross.x + dx, panel.cross.y + dy);
    panel.cross = { x, y };
    if (panel.anchor) {
      panel.setRegion(box(panel, [panel.anchor.x, panel.anchor.y], [x, y]), event.timeStamp);
    }
  } else if (acts[event.key]) acts[event.key]();
  else return;
  event.preventDefault();
  panel.drawOver();
}

function open(panel) {
  const row = panel.nearest(panel.cross.x, panel.cross.y, Infinity);
  if (row !== null) panel.calls.open(row);
}
