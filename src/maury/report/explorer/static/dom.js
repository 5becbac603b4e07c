// Small makers of elements and texts. Text from files is only ever set as text.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && typeof value !== "string") element[name] = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const counter = new Intl.NumberFormat("en");

export const count = (n) => counter.format(n);

export const byId = (id) => document.getElementById(id);

export function number(value, digits) {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  const text = digits === undefined ? String(Number(value.toPrecision(6))) : value.toFixed(digits);
  return text.replace("-", "\u2212");
}

// Decimals that leave two significant digits of an error.
export function decimals(error) {
  if (!(error > 0)) return 2;
  return Math.min(6, Math.max(0, 1 - Math.floor(Math.log10(error))));
}

// The Greek of the symbols, for the eye only.
export const pretty = (symbol) => symbol.replace("alpha/", "\u03b1/");

export function axisText(column) {
  const unit = column.unit && !(column.unit === "dex" && column.symbol.includes("["))
    ? ` [${column.unit}]` : "";
  return pretty(column.symbol) + unit;
}

// Lets a long name of capitals break after its underscores.
export const breakable = (name) => name.replaceAll("_", "_\u200b");

// Slow work that the header tells of, and that somebody may wait for.
const working = new Set();

export function busy(text, part) {
  const task = { text, part };
  const show = () => {
    const last = [...working].at(-1), bar = byId("progress");
    document.body.setAttribute("aria-busy", String(working.size > 0));
    byId("working").hidden = !last;
    byId("working-text").textContent = last ? last.text : "";
    if (last?.part === undefined) bar.removeAttribute("value");
    else bar.value = last.part;
  };
  working.add(task);
  show();
  return () => { working.delete(task); show(); };
}
