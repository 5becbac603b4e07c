// Light or dark: as the system is, until the button chooses.

import { use } from "./colours.js";
import { byId } from "./dom.js";

const system = window.matchMedia("(prefers-color-scheme: dark)");
let chosen = "";

export const chosenTheme = () => chosen;

export function linkTheme(first, repaint) {
  const button = byId("theme");
  const apply = () => {
    const name = chosen || (system.matches ? "dark" : "light");
    document.documentElement.dataset.theme = name;
    use(name);
    button.textContent = name === "dark" ? "Light" : "Dark";
    button.title = `Show the page ${name === "dark" ? "light" : "dark"}`;
    repaint();
  };
  button.addEventListener("click", () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    chosen = (next === "dark") === system.matches ? "" : next;
    apply();
  });
  system.addEventListener("change", apply);
  chosen = ["light", "dark"].includes(first) ? first : "";
  apply();
}
