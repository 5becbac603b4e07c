// Saves what a canvas shows as a figure: light, with a line that says what is shown.

import { theme, use } from "./colours.js";
import { make } from "./dom.js";
import { SvgPen } from "./svg.js";

// Three pixels for one of the screen: 300 a inch at 80 mm.
const SCALE = 3, LINE = 16, PAD = 6;

// A figure has a size, lines of text, and what draws it.
export async function saveFigure(kind, name, figure) {
  const before = theme.name;
  use("light");
  try {
    const drawn = figure();
    offer(await (kind === "svg" ? svg(drawn) : png(drawn)), `${name}.${kind}`);
  } finally {
    use(before);
  }
}

export function offer(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function png({ size, lines, paint }) {
  const head = PAD + LINE * lines.length;
  const canvas = make("canvas");
  canvas.width = Math.round(size.width * SCALE);
  canvas.height = Math.round((size.height + head) * SCALE);
  const pen = canvas.getContext("2d");
  pen.scale(SCALE, SCALE);
  pen.imageSmoothingEnabled = false;
  draw(pen, size, lines, head, paint);
  return new Promise((done) => { canvas.toBlob(done, "image/png"); });
}

function svg({ size, lines, paint }) {
  const head = PAD + LINE * lines.length;
  const pen = new SvgPen(size.width, size.height + head);
  draw(pen, size, lines, head, paint);
  return new Blob([pen.text()], { type: "image/svg+xml" });
}

function draw(pen, size, lines, head, paint) {
  pen.fillStyle = theme.paper;
  pen.fillRect(0, 0, size.width, size.height + head);
  pen.fillStyle = theme.ink;
  pen.font = "12px system-ui, sans-serif";
  pen.textAlign = "left";
  pen.textBaseline = "top";
  lines.forEach((line, k) => pen.fillText(line, PAD, PAD + LINE * k));
  pen.save();
  pen.translate(0, head);
  paint(pen);
  pen.restore();
}
