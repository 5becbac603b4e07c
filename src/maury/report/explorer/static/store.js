// Which stars pass the filters, and which of them are selected.

import { column } from "./data.js";
import { busy, pretty } from "./dom.js";

export class Store {
  constructor(about) {
    this.about = about;
    this.n = about.rows;
    this.info = new Map(about.columns.map((c) => [c.name, c]));
    this.columns = new Map();
    this.waiting = new Map();
    this.filtered = new Uint8Array(this.n).fill(1);
    this.selected = new Uint8Array(this.n).fill(1);
    this.ranges = new Map();
    this.where = null;
    this.asked = 0;
    this.clearFlags();
    this.regions = new Map();
    this.nFiltered = this.n;
    this.nSelected = this.n;
    this.colour = "";
    this.star = null;
    this.dirty = { filters: true, selection: true };
    this.listeners = [];
    this.stamp = null;
    this.pending = false;
    this.painted = new MessageChannel();
    this.painted.port1.onmessage = (event) => {
      performance.measure("maury-update", { start: event.data, end: performance.now() });
    };
  }

  async need(names) {
    const wanted = names.filter((name) => name && !this.columns.has(name));
    await Promise.all(wanted.map((name) => {
      if (!this.waiting.has(name)) {
        this.asked += 1;
        this.waiting.set(name, column(name, this.about.packed_rows)
          .then((values) => { this.columns.set(name, values); })
          .finally(() => { this.waiting.delete(name); this.showReading(); }));
        this.showReading();
      }
      return this.waiting.get(name);
    }));
  }

  // Says how many of the columns that were asked for together are here.
  showReading() {
    this.read?.();
    this.read = null;
    const left = this.waiting.size, { asked } = this;
    if (!left) { this.asked = 0; return; }
    const [next] = this.waiting.keys(), symbol = this.info.get(next)?.symbol || next;
    const text = `Reading ${pretty(symbol)} (${asked - left + 1} of ${asked} columns)`;
    this.read = busy(text, (asked - left) / asked);
  }

  get hasRegion() { return this.regions.size > 0; }

  setRange(name, range, stamp) {
    if (range) this.ranges.set(name, range);
    else this.ranges.delete(name);
    this.touch("filters", stamp);
  }

  setFlag(bit, demand, stamp) {
    const word = bit >> 5, mask = 1 << (bit & 31), { without, only } = this;
    without[word] = demand === "without" ? without[word] | mask : without[word] & ~mask;
    only[word] = demand === "only" ? only[word] | mask : only[word] & ~mask;
    this.touch("filters", stamp);
  }

  // Rows that an expression selects, one byte each, or null.
  setWhere(mask, stamp) {
    this.where = mask;
    this.touch("filters", stamp);
  }

  clearFlags() {
    // Two words of 32 bits, as JavaScript combines no more.
    this.without = [0, 0];
    this.only = [0, 0];
  }

  setRegion(id, mask, stamp) {
    if (mask) this.regions.set(id, mask);
    else this.regions.delete(id);
    this.touch("selection", stamp);
  }

  touch(what, stamp) {
    if (what === "filters") this.dirty.filters = true;
    if (what !== "look") this.dirty.selection = true;
    if (this.stamp === null && stamp !== undefined) this.stamp = stamp;
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => this.update());
  }

  update() {
    this.pending = false;
    const changed = { ...this.dirty };
    this.dirty = { filters: false, selection: false };
    if (changed.filters) this.filter();
    if (changed.selection) this.select();
    for (const listen of this.listeners) listen(changed);
    if (this.stamp !== null) {
      this.painted.port2.postMessage(this.stamp);
      this.stamp = null;
    }
  }

  filter() {
    const { n, filtered, without, only } = this;
    filtered.fill(1);
    if (this.where) filtered.set(this.where);
    const flags = this.columns.get("flags");
    for (const [word, bits] of (flags || []).entries()) {
      const none = without[word], all = only[word];
      if (!none && !all) continue;
      for (let i = 0; i < n; i++) {
        if ((bits[i] & none) !== 0 || (bits[i] & all) !== all) filtered[i] = 0;
      }
    }
    for (const [name, { min = -Infinity, max = Infinity }] of this.ranges) {
      const values = this.columns.get(name);
      // A missing value is not known to lie within any range.
      for (let i = 0; i < n; i++) if (!(values[i] >= min && values[i] <= max)) filtered[i] = 0;
    }
    let passed = 0;
    for (let i = 0; i < n; i++) passed += filtered[i];
    this.nFiltered = passed;
  }

  select() {
    const { n, selected } = this;
    selected.set(this.filtered);
    for (const mask of this.regions.values()) {
      for (let i = 0; i < n; i++) selected[i] &= mask[i];
    }
    let chosen = 0;
    for (let i = 0; i < n; i++) chosen += selected[i];
    this.nSelected = chosen;
  }

  neighbour(row, step) {
    const { n, selected } = this;
    for (let k = 1; k <= n; k++) {
      const i = (((row + step * k) % n) + n) % n;
      if (selected[i]) return i;
    }
    return null;
  }
}
