// Starts the page: asks what there is, loads the columns of the panels, links everything.

import { drawRamp } from "./colours.js";
import { download, json, sendToHub } from "./data.js";
import { axisText, busy, byId, count, make, number, pretty } from "./dom.js";
import { buildFilters } from "./filters.js";
import { getMode, setMode } from "./gestures.js";
import { Histogram } from "./histogram.js";
import { Panel } from "./panel.js";
import { offer, saveFigure } from "./saving.js";
import { StarSheet } from "./star.js";
import { read, regionOf, regionText, rememberer, viewOf, viewText } from "./state.js";
import { Store } from "./store.js";
import { chosenTheme, linkTheme } from "./theme.js";

const TITLES = {
  kiel: "Kiel diagram", plane: "Abundances", sky: "Sky, Galactic", map: "Galactic R and Z",
  cmd: "Colour, magnitude", histogram: "Histogram",
};
const GROUPS = { label: "Labels", place: "Places", other: "Other", error: "Errors" };

let silence;

function say(text, kind = "problem") {
  const host = byId("message");
  clearTimeout(silence);
  if (text && kind === "done") silence = setTimeout(() => say(""), 8000);
  host.onclick = () => say("");
  host.textContent = text;
  host.className = kind;
  host.hidden = !text;
}

function options(about) {
  return Object.entries(GROUPS).map(([group, text]) => {
    const members = about.columns.filter((column) => column.group === group);
    if (!members.length) return null;
    return make("optgroup", { label: text }, ...members.map(
      (column) => make("option", { value: column.name }, pretty(column.symbol))));
  }).filter(Boolean);
}

function axisChoices(spec, about, change) {
  return (spec.id === "histogram" ? spec.axes.slice(0, 1) : spec.axes).map((name, k) => {
    const select = make("select", { "aria-label": `${"xy"[k]} axis: ${spec.title}` }, ...options(about));
    select.value = name;
    select.addEventListener("change", () => change(k, select.value));
    return select;
  });
}

function buildPanels(store, calls) {
  const { about } = store, host = byId("panels"), panels = [];
  for (const [id, title] of Object.entries(TITLES)) {
    const axes = about.panels[id];
    if (!axes) continue;
    const spec = { id, title, axes: [...axes] };
    if (id === "plane" || id === "histogram") {
      spec.choices = axisChoices(spec, about, (k, name) => {
        spec.axes[k] = name;
        return setAxes(spec, store);
      });
    }
    spec.panel = new (id === "histogram" ? Histogram : Panel)(host, spec, store, calls);
    spec.panel.spec = spec;
    panels.push(spec.panel);
  }
  if (!panels.length) {
    host.append(make("p", { class: "quiet" }, "This catalogue has no two columns that could be drawn."));
  }
  host.dataset.count = String(panels.length);
  return panels;
}

async function setAxes(spec, store) {
  const wanted = [...spec.axes];
  try {
    await store.need(wanted);
    if (wanted.every((one, j) => one === spec.axes[j])) spec.panel.setAxes(...wanted);
  } catch (error) { say(error.message); }
}

function showCounts(store) {
  const { n, nFiltered, nSelected, regions } = store;
  const rows = n === 1 ? "row" : "rows";
  byId("count").textContent = regions.size || nFiltered !== n
    ? `${count(nSelected)} of ${count(n)} ${rows} selected` : `${count(n)} ${rows}`;
  byId("filter-state").textContent = nFiltered === n ? "" : `(${count(nFiltered)} pass)`;
  byId("clear").disabled = !regions.size;
  byId("save").disabled = byId("samp").disabled = nSelected === 0;
}

function showLegend(store, column) {
  const text = (value) => number(Number(value.toPrecision(2)));
  byId("low").textContent = column ? text(column.dark) : "few";
  byId("high").textContent = column ? `${text(column.bright)} ${column.unit}` : "many";
  byId("legend").setAttribute("aria-label", column
    ? `Colour: mean ${axisText(column)}, dark is low, bright is high`
    : "Colour: number of stars in a pixel, logarithmic, dark is few, bright is many");
}

function linkColour(store) {
  const select = byId("colour");
  select.append(...options(store.about));
  drawRamp(byId("ramp"));
  showLegend(store, null);
  const change = async (stamp) => {
    try {
      await store.need([select.value]);
      store.colour = select.value;
      showLegend(store, store.info.get(select.value));
      store.touch("look", stamp);
    } catch (error) { say(error.message); }
  };
  select.addEventListener("change", (event) => change(event.timeStamp));
  return change;
}

async function working(button, text, act) {
  const done = busy(text);
  button.disabled = true;
  try {
    say(await act(), "done");
  } catch (error) {
    say(error.message);
  } finally {
    done();
    button.disabled = false;
  }
}

function linkExports(store) {
  byId("save").addEventListener("click", () => working(byId("save"), "Writing the selection", async () => {
    const rows = store.nSelected;
    const { blob, name } = await download(store.selected, byId("format").value);
    offer(blob, name);
    return `${count(rows)} rows saved as ${name}`;
  }));
  byId("samp").addEventListener("click", () => working(byId("samp"), "Sending the selection", async () => {
    const rows = store.nSelected, { sent } = await sendToHub(store.selected);
    return `${count(rows)} rows sent to ${sent.join(", ")}`;
  }));
}

async function tellHub() {
  const button = byId("samp");
  try {
    const { hub } = await json("/api/samp");
    button.title = hub ? "Send the selection by SAMP" : "No SAMP hub runs: start TOPCAT first";
    button.textContent = hub ? "Send to TOPCAT" : "TOPCAT (no hub)";
  } catch { /* the button says so when it is used */ }
}

function linkModes(panels) {
  const touch = window.matchMedia("(pointer: coarse)").matches;
  document.body.classList.toggle("touched", touch);
  const first = document.querySelector(`#modes input[value="${read().get("mode") || ""}"]`);
  if (first && (touch || first.value !== "look")) first.checked = true;
  else if (touch) document.querySelector("#modes input[value=look]").checked = true;
  const apply = () => setMode(document.querySelector("#modes input:checked").value, panels);
  byId("modes").addEventListener("change", apply);
  apply();
}

function linkFind(sheet) {
  byId("find").addEventListener("submit", async (event) => {
    event.preventDefault();
    const id = byId("find-id").value.trim();
    if (!id) return;
    try {
      const { row } = await json(`/api/find?id=${encodeURIComponent(id)}`);
      say("");
      sheet.open(row);
    } catch (error) { say(error.message); }
  });
}

function describe(about) {
  byId("name").textContent = about.name;
  document.title = `${about.simulated ? "SIMULATED " : ""}${about.name} - maury explore`;
  if (!about.simulated && !about.trained_on_simulated) return;
  byId("mark").hidden = false;
  byId("mark").textContent = about.simulated ? "SIMULATED spectra"
    : "labels by networks trained on simulated spectra";
}

// What a saved figure says of itself: catalogue, how many rows it shows, colour, simulated.
function figureText(store, title) {
  const { about, colour, nSelected, n } = store;
  const rows = nSelected === n ? `${count(n)} rows` : `${count(nSelected)} of ${count(n)} rows`;
  const mark = about.simulated ? "SIMULATED spectra: " : "";
  const column = store.info.get(colour);
  const shown = column ? `mean ${axisText(column)}, ${number(column.dark, 2)} to ${number(column.bright, 2)}`
    : "number of stars, logarithmic";
  return [`${mark}${about.name}, ${rows}`, `${title}; colour: ${shown}`];
}

function saver(store) {
  return async (kind, name, figure) => {
    const title = TITLES[name];
    try {
      await saveFigure(kind, `${store.about.name}-${name}`.replace(/[^\w.-]+/g, "_"), () => {
        const drawn = figure();
        const lines = title ? figureText(store, title)
          : [...(store.about.simulated ? ["SIMULATED"] : []), ...drawn.lines];
        return { ...drawn, lines };
      });
    } catch (error) { say(error.message); } finally { store.touch("filters"); }
  };
}

function gatherState(store, panels, filters) {
  const state = new URLSearchParams();
  const put = (name, value, usual) => { if (value && value !== usual) state.set(name, value); };
  for (const panel of panels) {
    const { id, spec } = panel, usual = store.about.panels[id];
    if (spec.axes.some((name, k) => name !== usual[k])) {
      put(`${id}.axes`, spec.axes.join(","));
    }
    if (panel.zoomed) put(`${id}.view`, viewText(panel.asked));
    if (panel.region) put(`${id}.region`, regionText(panel.region));
  }
  for (const [name, value] of Object.entries(filters.state())) put(name, value);
  put("colour", store.colour);
  put("mode", getMode(), document.body.classList.contains("touched") ? "look" : "box");
  put("theme", chosenTheme());
  if (store.star !== null) put("row", String(store.star));
  return state;
}

// Sets what the address tells, as far as this catalogue has it.
async function applyState(state, store, { panels, filters, colour, sheet }) {
  for (const panel of panels) {
    const { id, spec } = panel, axes = (state.get(`${id}.axes`) || "").split(",");
    if (axes.length === 2 && axes.every((name) => store.info.has(name))) {
      spec.axes = axes;
      spec.choices?.forEach((select, k) => { select.value = axes[k]; });
      await setAxes(spec, store);
    }
    const view = viewOf(state.get(`${id}.view`)), region = regionOf(state.get(`${id}.region`));
    if (view) panel.setView(view);
    if (region) panel.setRegion(region);
  }
  await filters.apply(state);
  if (store.info.has(state.get("colour"))) {
    byId("colour").value = state.get("colour");
    await colour();
  }
  const row = state.get("row");
  if (/^\d{1,12}$/.test(row || "") && Number(row) < store.n) sheet.open(Number(row));
}

async function start() {
  // Before anything is drawn, or the page would be seen in the wrong colours.
  let repaint = () => {};
  linkTheme(read().get("theme"), () => repaint());
  const about = await json("/api/about");
  describe(about);
  const store = new Store(about);
  const first = ["flags", ...Object.values(about.panels).flatMap((axes) => axes || [])];
  await store.need([...new Set(first)]);
  const save = saver(store);
  const sheet = new StarSheet(store, { say, save });
  const panels = buildPanels(store, { open: (row) => sheet.open(row), save });
  const filters = buildFilters(store, say);
  if (window.matchMedia("(max-width: 900px)").matches) byId("filters").open = false;
  linkModes(panels);
  const colour = linkColour(store);
  linkExports(store);
  linkFind(sheet);
  byId("clear").addEventListener("click", (event) => {
    for (const panel of panels) panel.setRegion(null, event.timeStamp);
  });
  const state = read();
  const remember = rememberer(() => gatherState(store, panels, filters));
  store.listeners.push((changed) => {
    for (const panel of panels) panel.draw(changed);
    showCounts(store);
    remember();
  });
  repaint = () => {
    drawRamp(byId("ramp"));
    store.touch("filters");
    sheet.redraw();
  };
  byId("modes").addEventListener("change", remember);
  await applyState(state, store, { panels, filters, colour, sheet });
  // Whoever changes the address by hand, or opens a kept one, wants to see what it says.
  window.addEventListener("hashchange", () => window.location.reload());
  store.touch("filters");
  requestAnimationFrame(() => requestAnimationFrame(() => {
    document.body.dataset.ready = "yes";
    performance.mark("maury-first-view");
  }));
  tellHub();
}

start().catch((error) => {
  say(error.message);
  byId("count").textContent = "";
});
