// A pen that draws as that of a canvas does, and writes SVG: just what the page's drawings use.

const KEPT = ["strokeStyle", "fillStyle", "lineWidth", "font", "textAlign", "textBaseline"];
const ANCHOR = { left: "start", center: "middle", right: "end" };
// Shifts of a baseline, in heights of a letter: programs disagree on SVG's own names for them.
const SHIFT = { top: 0.8, middle: 0.35, bottom: -0.2, alphabetic: 0 };

const clean = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;")
  .replaceAll(">", "&gt;").replaceAll('"', "&quot;");

const short = (value) => String(Math.round(value * 100) / 100);

export class SvgPen {
  constructor(width, height) {
    Object.assign(this, { width, height, parts: [], stack: [], path: "", dash: [] });
    Object.assign(this, { strokeStyle: "#000", fillStyle: "#000", lineWidth: 1 });
    Object.assign(this, { font: "12px sans-serif", textAlign: "left", textBaseline: "top" });
    // Places are worked out here, so that a clip and what it clips share their coordinates.
    this.at = { x: 0, y: 0, turned: 0 };
    this.clipped = "";
    this.clips = 0;
  }

  save() {
    const kept = Object.fromEntries(KEPT.map((name) => [name, this[name]]));
    this.stack.push({ ...kept, at: { ...this.at }, dash: this.dash, clipped: this.clipped });
  }

  restore() { Object.assign(this, this.stack.pop()); }

  translate(x, y) { this.at = { ...this.at, x: this.at.x + x, y: this.at.y + y }; }

  rotate(angle) { this.at = { ...this.at, turned: this.at.turned + (angle * 180) / Math.PI }; }

  setLineDash(dash) { this.dash = dash; }

  beginPath() { this.path = ""; }

  moveTo(x, y) { this.path += `M${this.place(x, y)}`; }

  lineTo(x, y) { this.path += `L${this.place(x, y)}`; }

  closePath() { this.path += "Z"; }

  rect(x, y, width, height) {
    this.path += `M${this.place(x, y)}h${short(width)}v${short(height)}h${short(-width)}Z`;
  }

  // Whole circles only: the page draws no other arc.
  arc(x, y, radius) {
    const r = short(radius), back = short(-2 * radius), on = short(2 * radius);
    this.path += `M${this.place(x - radius, y)}a${r} ${r} 0 1 0 ${on} 0a${r} ${r} 0 1 0 ${back} 0`;
  }

  clip() {
    this.clips += 1;
    this.parts.push(`<clipPath id="clip${this.clips}"><path d="${this.path}"/></clipPath>`);
    this.clipped = `url(#clip${this.clips})`;
  }

  stroke() { this.add("path", { d: this.path, ...this.outline(this.lineWidth) }); }

  strokeRect(x, y, width, height) {
    this.beginPath();
    this.rect(x, y, width, height);
    this.stroke();
  }

  fillRect(x, y, width, height) {
    this.beginPath();
    this.rect(x, y, width, height);
    this.add("path", { d: this.path, fill: this.fillStyle });
  }

  fillText(text, x, y) { this.write(text, x, y, { fill: this.fillStyle }); }

  strokeText(text, x, y) { this.write(text, x, y, this.outline(this.lineWidth)); }

  drawImage(canvas, x, y, width, height) {
    const [px, py] = this.place(x, y).split(" ");
    this.add("image", {
      href: canvas.toDataURL("image/png"), x: px, y: py, width: short(width),
      height: short(height), preserveAspectRatio: "none", style: "image-rendering: pixelated",
    });
  }

  place(x, y) { return `${short(x + this.at.x)} ${short(y + this.at.y)}`; }

  outline(width) {
    const dash = this.dash.length ? { "stroke-dasharray": this.dash.join(" ") } : {};
    return { fill: "none", stroke: this.strokeStyle, "stroke-width": width, ...dash };
  }

  write(text, x, y, look) {
    const size = parseFloat(this.font);
    const turned = this.at.turned
      ? { transform: `translate(${this.place(x, y)}) rotate(${short(this.at.turned)})` } : {};
    const [px, py] = this.at.turned ? ["0", "0"] : this.place(x, y).split(" ");
    this.add("text", {
      x: px, y: py, dy: short(SHIFT[this.textBaseline] * size), "font-size": size,
      "font-family": "sans-serif", "text-anchor": ANCHOR[this.textAlign], ...turned, ...look,
    }, text);
  }

  add(tag, attributes, text = "") {
    const clip = this.clipped ? { "clip-path": this.clipped } : {};
    const told = Object.entries({ ...attributes, ...clip })
      .map(([name, value]) => ` ${name}="${clean(value)}"`).join("");
    this.parts.push(`<${tag}${told}>${clean(text)}</${tag}>`);
  }

  text() {
    const size = `width="${short(this.width)}" height="${short(this.height)}"`;
    const box = `viewBox="0 0 ${short(this.width)} ${short(this.height)}"`;
    return `<svg xmlns="http://www.w3.org/2000/svg" ${size} ${box}>\n${this.parts.join("\n")}\n</svg>\n`;
  }
}
