// Starts the page: asks what there is, loads the columns of the panels, links everything.

import { drawRamp } from "./colours.js";
import { download, json, sendToHub } from "./data.js";
import { axisText, byId, count, make, number, pretty } from "./dom.js";
import { buildFilters } from "./filters.js";
import { setMode } from "./gestures.js";
import { Panel } from "./panel.js";
import { StarSheet } from "./star.js";
import { Store } from "./store.js";

const TITLES = {
  kiel: "Kiel diagram", plane: "Abundances", sky: "Sky, Galactic", map: "R and Z, Galactocentric",
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

function axisChoices(about, axes, change) {
  return axes.map((name, k) => {
    const select = make("select", { "aria-label": `${"xy"[k]} axis` }, ...options(about));
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
    if (id === "plane") {
      spec.choices = axisChoices(about, axes, async (k, name) => {
        spec.axes[k] = name;
        const wanted = [...spec.axes];
        try {
          await store.need(wanted);
          if (wanted.every((one, j) => one === spec.axes[j])) spec.panel.setAxes(...wanted);
        } catch (error) { say(error.message); }
      });
    }
    spec.panel = new Panel(host, spec, store, calls);
    panels.push(spec.panel);
  }
  if (!panels.length) {
    host.append(make("p", { class: "quiet" }, "This catalogue has no two columns that could be drawn."));
  }
  host.dataset.count = String(panels.length);
  return panels;
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
  select.addEventListener("change", async (event) => {
    try {
      await store.need([select.value]);
      store.colour = select.value;
      showLegend(store, store.info.get(select.value));
      store.touch("look", event.timeStamp);
    } catch (error) { say(error.message); }
  });
}

async function working(button, text, act) {
  const before = button.textContent;
  button.disabled = true;
  button.textContent = text;
  try {
    say(await act(), "done");
  } catch (error) {
    say(error.message);
  } finally {
    button.textContent = before;
    button.disabled = false;
  }
}

function linkExports(store) {
  byId("save").addEventListener("click", () => working(byId("save"), "Writing", async () => {
    const rows = store.nSelected;
    const { blob, name } = await download(store.selected, byId("format").value);
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    return `${count(rows)} rows saved as ${name}`;
  }));
  byId("samp").addEventListener("click", () => working(byId("samp"), "Sending", async () => {
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
  if (touch) document.querySelector("#modes input[value=look]").checked = true;
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

async function start() {
  const about = await json("/api/about");
  describe(about);
  const store = new Store(about);
  const first = ["flags", ...Object.values(about.panels).flatMap((axes) => axes || [])];
  await store.need([...new Set(first)]);
  const sheet = new StarSheet(store, { say });
  const panels = buildPanels(store, { open: (row) => sheet.open(row) });
  buildFilters(store, say);
  if (window.matchMedia("(max-width: 900px)").matches) byId("filters").open = false;
  linkModes(panels);
  linkColour(store);
  linkExports(store);
  linkFind(sheet);
  byId("clear").addEventListener("click", (event) => {
    for (const panel of panels) panel.setRegion(null, event.timeStamp);
  });
  store.listeners.push((changed) => {
    for (const panel of panels) panel.draw(changed);
    showCounts(store);
  });
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
