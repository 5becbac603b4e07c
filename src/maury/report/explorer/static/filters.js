// The filters: S/N, flags one by one with their reasons, errors of the labels.

import { where } from "./data.js";
import { breakable, busy, byId, count, make, number, pretty } from "./dom.js";

const STEPS = 100;

// Builds the filters; what it returns reads and writes their state, as texts by name.
export function buildFilters(store, say) {
  const body = byId("filter-body");
  const resets = [];
  const expression = whereField(store, resets);
  body.append(expression.host);
  const snr = store.info.get("snr");
  if (snr) {
    body.append(slider(store, snr, { side: "min", text: "S/N at least", say, resets, from: 0 }));
  }
  body.append(flagList(store, resets));
  const errors = store.about.columns.filter((column) => column.group === "error");
  if (errors.length) {
    const list = make("details", { class: "group" }, make("summary", {}, "Errors at most"));
    for (const column of errors) {
      const text = pretty(column.symbol.replace("error of ", ""));
      list.append(slider(store, column, { side: "max", text, say, resets, from: 0 }));
    }
    body.append(list);
  }
  body.append(make("button", {
    type: "button", id: "reset-filters", onclick: (event) => {
      resets.forEach((reset) => reset());
      store.touch("filters", event.timeStamp);
    },
  }, "Reset filters"));
  return {
    state: () => ({ where: expression.text(), ...changed(body) }),
    apply: async (state) => {
      for (const input of body.querySelectorAll("input[type=range], select")) {
        const wanted = state.get(input.id);
        if (wanted === null) continue;
        input.value = wanted;
        input.dispatchEvent(new Event(input.type === "range" ? "input" : "change"));
      }
      if (state.get("where")) await expression.set(state.get("where"));
    },
  };
}

// Sliders and choices that are not where they began.
function changed(body) {
  const found = {};
  for (const input of body.querySelectorAll("input[type=range]")) {
    if (input.value !== input.getAttribute("value")) found[input.id] = input.value;
  }
  for (const select of body.querySelectorAll("select")) {
    if (select.value !== "any") found[select.id] = select.value;
  }
  return found;
}

// A condition on the columns: it is read by the server, which says what is wrong with it.
function whereField(store, resets) {
  const input = make("input", { type: "search", id: "where", autocomplete: "off",
    spellcheck: false, maxlength: "500", placeholder: "m_h < -1 & snr > 40",
    "aria-describedby": "where-problem where-help" });
  const problem = make("p", { id: "where-problem", class: "problem", role: "alert", hidden: true });
  let applied = "", last = 0;
  const set = async (text, stamp) => {
    const mine = ++last, done = busy("Selecting");
    input.value = text;
    try {
      const mask = text ? await where(text, store.n) : null;
      if (mine !== last) return;
      applied = text;
      problem.hidden = true;
      input.removeAttribute("aria-invalid");
      store.setWhere(mask, stamp);
    } catch (error) {
      if (mine !== last) return;
      problem.textContent = error.message;
      problem.hidden = false;
      input.setAttribute("aria-invalid", "true");
    } finally {
      done();
    }
  };
  const host = make("form", { class: "where", onsubmit: (event) => {
    event.preventDefault();
    set(input.value.trim(), event.timeStamp);
  } }, make("label", { for: "where" }, "Only rows where"),
  make("button", { type: "submit" }, "Select"), input, problem,
  make("details", { class: "quiet", id: "where-help" }, make("summary", {}, "How to write it"),
    make("p", {}, "Columns and numbers with + - * / and < <= > >= == !=, also 0 < x < 1; "
      + "joined by & and |, turned round by !, in brackets. A flag stands by its name: !EMISSION. "
      + "Missing values pass neither a condition nor its opposite."),
    make("p", {}, store.about.columns.map((column) => column.name).join(", "))));
  // The cross of a search field empties it without a submit.
  input.addEventListener("search", (event) => { if (!input.value) set("", event.timeStamp); });
  resets.push(() => { last += 1; applied = input.value = ""; problem.hidden = true; store.where = null; });
  return { host, set, text: () => applied };
}

function slider(store, column, { side, text, say, resets, from }) {
  const id = `filter-${column.name}`, { high } = column;
  const value = (place) => from + (high - from) * (place / STEPS) ** (side === "max" ? 2 : 1);
  const off = side === "min" ? 0 : STEPS;
  const digits = high - from > 50 ? 0 : high - from > 5 ? 1 : 3;
  const output = make("output", { for: id }, "any");
  const input = make("input", { type: "range", id, min: "0", max: String(STEPS), value: String(off) });
  const show = () => {
    const place = Number(input.value);
    const limit = place === off ? "any" : number(value(place), digits);
    output.textContent = limit === "any" ? limit : `${limit} ${column.unit}`.trim();
    input.setAttribute("aria-valuetext", output.textContent);
    return place;
  };
  input.addEventListener("input", async (event) => {
    const place = show();
    try {
      await store.need([column.name]);
    } catch (error) { say(error.message); return; }
    if (place !== Number(input.value)) return;
    store.setRange(column.name, place === off ? null : { [side]: value(place) }, event.timeStamp);
  });
  resets.push(() => { input.value = String(off); show(); store.ranges.delete(column.name); });
  const title = `${column.description}. Stars without a value are left out.`;
  return make("div", { class: "slider", title }, make("label", { for: id }, text), output, input);
}

function flagList(store, resets) {
  const selects = new Map();
  const row = (flag) => {
    const id = `flag-${flag.name}`;
    const select = make("select", { id, "aria-describedby": `${id}-why` },
      ...["any", "without", "only"].map((name) => make("option", { value: name }, name)));
    select.addEventListener("change", (event) => {
      store.setFlag(flag.bit, select.value, event.timeStamp);
    });
    selects.set(flag, select);
    resets.push(() => { select.value = "any"; });
    return make("div", { class: "flag" },
      make("label", { for: id }, make("span", { class: flag.warns ? "warns" : "informs" },
        flag.warns ? "warns" : "informs"), breakable(flag.name)),
      select,
      make("p", { id: `${id}-why` }, `${flag.text} (${count(flag.count)})`));
  };
  resets.push(() => store.clearFlags());
  const set = store.about.flags.filter((flag) => flag.count);
  const clean = make("button", { type: "button", id: "no-warnings", onclick: (event) => {
    for (const [flag, select] of selects) {
      if (!flag.warns) continue;
      select.value = "without";
      store.setFlag(flag.bit, "without", event.timeStamp);
    }
  } }, "Without warnings");
  const rest = store.about.flags.length - set.length;
  return make("details", { class: "group", open: true }, make("summary", {}, "Flags"),
    set.some((flag) => flag.warns) ? clean : null, ...set.map(row),
    make("p", { class: "quiet" }, set.length ? `${rest} other flags are set nowhere` : "no flag is set"));
}
