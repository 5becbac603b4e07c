// The sheet of one star: flags with reasons, spectrum with fit, labels, nearest training stars.

import { json } from "./data.js";
import { busy, byId, decimals, make, number, pretty } from "./dom.js";
import { SpectrumPlot } from "./spectrum.js";

const MAIN = ["teff", "logg", "m_h", "alpha_m"];

export class StarSheet {
  constructor(store, calls) {
    this.store = store;
    this.calls = calls;
    this.host = byId("star");
    this.label = store.about.labels[0] || "";
    this.wanted = null;
    this.build();
  }

  build() {
    const button = (text, label, act) => make(
      "button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
    this.title = make("h2", { id: "star-title" });
    this.place = make("p", { class: "quiet" });
    this.canvas = make("canvas", {
      class: "spectrum", tabIndex: 0, role: "img",
      "aria-label": "Spectrum. Plus and minus zoom, arrow keys move, 0 shows all.",
    });
    this.key = make("p", { class: "key" });
    this.choice = make("select", { id: "sensitivity-label" }, ...this.store.about.labels.map(
      (name) => make("option", { value: name }, pretty(this.store.info.get(name).symbol))));
    this.choice.addEventListener("change", () => { this.label = this.choice.value; this.redraw(); });
    this.sensitive = make("p", { class: "choice", hidden: true },
      make("label", { for: "sensitivity-label" }, "Sensitivity of "), this.choice,
      make("span", { class: "quiet", id: "sensitivity-note" }));
    this.note = make("p", { class: "quiet", id: "spectrum-note", role: "status" });
    this.elsewhere = make("p", { class: "elsewhere" });
    this.saver = make("p", { class: "choice", hidden: true }, "Save the spectrum as ",
      ...["PNG", "SVG"].map((kind) => make("button", { type: "button",
        onclick: () => this.calls.save(kind.toLowerCase(), this.title.textContent,
          () => this.figure()) }, kind)));
    this.flags = make("div", {});
    this.tables = make("div", {});
    this.host.setAttribute("aria-labelledby", "star-title");
    this.host.append(
      make("div", { class: "head" }, this.title, make("span", { class: "spread" }),
        button("\u2190", "Previous of the selection", () => this.step(-1)),
        button("\u2192", "Next of the selection", () => this.step(1)),
        button("\u00d7", "Close", () => this.close())),
      this.place, this.elsewhere, this.flags,
      make("div", { class: "spectrum-box" }, this.canvas), this.key, this.sensitive, this.saver,
      this.note,
      this.tables);
    this.host.addEventListener("keydown", (event) => { if (event.key === "Escape") this.close(); });
  }

  step(by) {
    const next = this.store.star === null ? null : this.store.neighbour(this.store.star, by);
    if (next !== null) this.open(next);
  }

  close() {
    this.host.hidden = true;
    this.wanted = null;
    document.body.classList.remove("with-star");
    this.store.star = null;
    this.store.touch("look");
    if (this.opener) this.opener.focus({ preventScroll: true });
  }

  async open(row) {
    if (this.host.hidden) this.opener = document.activeElement;
    this.wanted = row;
    this.store.star = row;
    this.store.touch("look");
    const stale = () => this.wanted !== row;
    try {
      const star = await json(`/api/star/${row}`);
      if (stale()) return;
      this.host.hidden = false;
      document.body.classList.add("with-star");
      this.fill(star);
      this.host.focus({ preventScroll: true });
      await this.fetchSpectrum(row, stale);
    } catch (error) {
      if (!stale()) this.calls.say(error.message);
    }
  }

  fill(star) {
    this.title.textContent = star.id;
    this.place.textContent = `row ${star.row}`;
    // Followed only if the user does; the other site is told the position alone.
    this.elsewhere.replaceChildren(...star.links.map(({ name, address, what }) => make("a",
      { href: address, target: "_blank", rel: "noopener noreferrer", title: what }, name)));
    this.flags.replaceChildren(flags(star.flags));
    this.tables.replaceChildren(labels(star.labels), this.neighbours(star), rest(star.columns));
  }

  async fetchSpectrum(row, stale) {
    const { has } = this.store.about;
    this.spectrum = this.sensitivity = null;
    const box = this.canvas.parentElement;
    this.sensitive.hidden = this.saver.hidden = true;
    this.key.replaceChildren();
    if (!has.spectra) {
      box.hidden = true;
      this.note.textContent = "Start with --survey to see the spectrum.";
      return;
    }
    this.note.textContent = "";
    let done = busy("Reading the spectrum");
    try {
      const spectrum = await json(`/api/spectrum/${row}`);
      if (stale()) return;
      this.spectrum = spectrum;
      box.hidden = this.saver.hidden = false;
      this.redraw();
      if (!has.model) {
        this.note.textContent = "Start with --model to see what a label listens to.";
        return;
      }
      done();
      done = busy("Differentiating the networks");
      const sensitivity = await json(`/api/sensitivity/${row}`);
      if (stale()) return;
      this.sensitivity = sensitivity;
      this.sensitive.hidden = false;
      this.redraw();
    } catch (error) {
      if (stale()) return;
      if (!this.spectrum) box.hidden = true;
      this.note.textContent = error.message;
    } finally {
      done();
    }
  }

  redraw() {
    const { spectrum, sensitivity, label } = this;
    if (!spectrum) return;
    this.plot ??= new SpectrumPlot(this.canvas);
    const { wave, flux, error, fit, medium } = spectrum;
    const strips = [{
      text: "flux", weight: 2.4,
      curves: [{ values: flux, error, style: "flux" }, ...(fit ? [{ values: fit, style: "fit" }] : [])],
    }];
    if (fit) {
      const residual = flux.map((v, i) => (v === null || error[i] === null || fit[i] === null
        ? null : (v - fit[i]) / error[i]));
      strips.push({
        text: "residual / \u03c3", weight: 1, about: 0, least: 4,
        curves: [{ values: residual, style: "flux" }],
      });
    }
    let { lines } = spectrum;
    if (sensitivity && sensitivity.network[label]) {
      const unit = this.store.info.get(label).unit || "1";
      const curves = [{ values: sensitivity.network[label], style: "network" }];
      if (sensitivity.optimal[label]) curves.unshift({ values: sensitivity.optimal[label], style: "optimal" });
      strips.push({ text: `d/d flux [${unit}]`, weight: 1.3, about: 0, curves });
      const chosen = sensitivity.lines[label];
      if (chosen.length) lines = Object.fromEntries(chosen.map((name) => [name, lines[name]]));
      const like = sensitivity.correlation[label];
      byId("sensitivity-note").textContent = like === undefined ? "" : ` correlation ${number(like, 2)}`;
    }
    this.plot.show({ wave, medium, strips, lines });
    this.key.replaceChildren(...this.keyItems(spectrum, sensitivity));
  }

  figure() {
    const told = [...this.key.children].map((item) => item.textContent).join(", ");
    const drawn = this.plot.figure();
    return { ...drawn, lines: [`${this.title.textContent}: ${told}`] };
  }

  keyItems(spectrum, sensitivity) {
    const item = (style, text) => make("span", { class: `swatch ${style}` }, text);
    const mark = spectrum.simulated ? "SIMULATED spectrum" : "spectrum";
    const items = [item("flux", mark)];
    if (spectrum.fit) items.push(item("fit", spectrum.origin));
    else items.push(make("span", {}, spectrum.origin));
    if (sensitivity) {
      items.push(item("network", "networks"));
      if (sensitivity.optimal[this.label]) items.push(item("optimal", "best linear estimator"));
    }
    return items;
  }

  neighbours(star) {
    const { names, stars, origin } = star.neighbours;
    if (!stars.length) return make("p", { class: "quiet" }, "No training stars are known here.");
    const main = MAIN.filter((name) => names.includes(name));
    const shown = main.length ? main : names.slice(0, 4), at = (name) => names.indexOf(name);
    const head = ["star", "distance", ...shown.map((name) => pretty(this.symbol(name)))];
    const who = (near) => (near.row === null || near.row === undefined
      ? near.id || "\u2013"
      : make("button", { type: "button", class: "link", onclick: () => this.open(near.row) }, near.id));
    const rows = stars.map((near) => [who(near), number(near.distance, 2),
      ...shown.map((name) => number(near.labels[at(name)], name === "teff" ? 0 : 2))]);
    return table(`Nearest training stars (${origin}; distance in standard deviations)`, head, rows);
  }

  symbol(name) { return this.store.info.get(name)?.symbol || name; }
}

function flags(list) {
  if (!list.length) return make("p", { class: "quiet" }, "No flag is set.");
  return make("ul", { class: "flags" }, ...list.map((flag) => make("li", {},
    make("span", { class: flag.warns ? "warns" : "informs" }, flag.warns ? "warns" : "informs"),
    make("b", {}, flag.name), ` ${flag.text}`)));
}

function labels(list) {
  if (!list.length) return make("p", { class: "quiet" }, "This catalogue has no labels.");
  const rows = list.map(({ symbol, unit, value, error, quantiles }) => {
    const digits = decimals(error);
    const bracket = unit && unit !== "dex" ? ` [${unit}]` : "";
    return [pretty(symbol) + bracket, number(value, digits), number(error, digits),
      ...quantiles.map((q) => number(q, digits))];
  });
  const levels = list[0].percents.map((percent) => `${percent} %`);
  return table("Labels", ["label", "value", "error", ...levels], rows);
}

function rest(list) {
  const rows = list.map(({ name, value, unit, text }) => {
    const cell = make("td", { title: text }, typeof value === "number" ? number(value)
      : value === null ? "\u2013" : String(value));
    return [name, cell, unit];
  });
  return rows.length ? table("Other columns", ["column", "value", "unit"], rows) : "";
}

function table(caption, head, rows) {
  const cell = (content, k) => (content instanceof HTMLTableCellElement ? content
    : make(k ? "td" : "th", k ? {} : { scope: "row" }, content));
  return make("div", { class: "table", tabIndex: 0, role: "region", "aria-label": caption },
    make("table", {}, make("caption", {}, caption),
      make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell))))));
}
