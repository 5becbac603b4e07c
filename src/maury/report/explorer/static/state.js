// The view in the address, after '#': what follows it is sent to no server, and the key is not in it.

const DIGITS = 6;

const terse = (value) => String(Number(Number(value).toPrecision(DIGITS)));

export const numbersOf = (text) => text.split(",").map(Number);

export function viewText({ x0, x1, y0, y1 }) { return [x0, x1, y0, y1].map(terse).join(","); }

export function viewOf(text) {
  const [x0, x1, y0, y1] = numbersOf(text || "");
  return [x0, x1, y0, y1].every(Number.isFinite) && x0 !== x1 && y0 !== y1
    ? { x0, x1, y0, y1 } : null;
}

export function regionText(region) {
  return region.points ? region.points.flat().map(terse).join(",") : viewText(region);
}

export function regionOf(text) {
  const found = numbersOf(text || "");
  if (!found.every(Number.isFinite)) return null;
  if (found.length === 4) return viewOf(text);
  if (found.length < 6 || found.length % 2) return null;
  const points = [];
  for (let k = 0; k < found.length; k += 2) points.push([found[k], found[k + 1]]);
  return { points };
}

export const read = () => new URLSearchParams(window.location.hash.slice(1));

// The frame of a notebook has no address.
const hasAddress = window.location.protocol !== "about:";

// Writes the state a moment after it last changed: browsers count how often an address changes.
export function rememberer(gather) {
  let waiting;
  if (!hasAddress) return () => {};
  return () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const text = gather().toString();
      const { pathname } = window.location;
      if (`#${text}` !== (window.location.hash || "#")) {
        window.history.replaceState(null, "", text ? `${pathname}#${text}` : pathname);
      }
    }, 250);
  };
}
