// The frame: which view is shown, the key, the colours, the keyboard.

import { key } from "./api.js";
import { mountCompare } from "./compare.js";
import { ask, field, tell } from "./dialog.js";
import { h } from "./dom.js";
import { mountJobs } from "./jobs.js";
import { mountLive } from "./live.js";
import { mountPlayground } from "./playground.js";
import { server } from "./server.js";
import { mountVariants } from "./variants.js";

const VIEWS = ["variants", "compare", "playground", "live", "jobs"];
const THEMES = { auto: "light dark", light: "light", dark: "dark" };
const SHORTCUTS = [
  ["1 to 5", "Variants, Compare, Playground, Live, Jobs"],
  ["Ctrl + Enter", "send the prompt of the playground"],
  ["Tab, Enter, Space", "reach and press every button, point of a chart and column head"],
  ["Escape", "close a dialog; stop the answers of the playground"],
  ["?", "this list"],
];

function show() {
  const [wanted] = location.hash.slice(1).split("?");
  const view = VIEWS.includes(wanted) ? wanted : VIEWS[0];
  for (const name of VIEWS) {
    document.getElementById(name).hidden = name !== view;
    const link = document.querySelector(`nav a[href="#${name}"]`);
    if (name === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${document.getElementById(view).ariaLabel} – slimserve`;
  document.getElementById(view).dispatchEvent(new Event("shown"));
}

let isAsking = false;

async function askForKey() {
  if (isAsking) return;
  isAsking = true;
  const input = h("input", { name: "key", type: "password", autocomplete: "off", value: key.get(), autofocus: true });
  await ask({
    title: "API key",
    body: [
      h("p", {}, "One of SLIMSERVE_API_KEYS. A key of SLIMSERVE_INFERENCE_KEYS opens the playground only."),
      field("Key", input, "Kept until this tab is closed. Empty: no key."),
    ],
    action: "Use it",
    submit: async (form) => {
      key.set(form.get("key").trim());
      await server.refresh({ again: true });
      if (server.error?.status === 401) throw server.error;
    },
  });
  isAsking = false;
}

function tellState() {
  const { error } = server;
  const output = document.getElementById("connection");
  output.className = error ? "failure" : "";
  output.textContent = error ? (error.status === 0 ? "The server does not answer; trying again" : error.message) : "";
  if (error?.status === 401 && !key.get()) askForKey();
}

function setTheme(name) {
  localStorage.setItem("slimserve.theme", name);
  document.documentElement.style.colorScheme = THEMES[name];
  const button = document.getElementById("theme");
  button.textContent = name[0].toUpperCase() + name.slice(1);
  button.ariaLabel = `${button.textContent}: colours ${name === "auto" ? "as the system has them" : "of this page"}`;
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const now = localStorage.getItem("slimserve.theme") ?? "auto";
  setTheme(names[(names.indexOf(now) + 1) % names.length]);
}

function help() {
  const rows = SHORTCUTS.map(([keys, what]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, what)]);
  tell("Keyboard", h("dl", { class: "facts" }, ...rows.flat()));
}

function onKey(event) {
  const isTyping = event.target.closest("input, textarea, select, dialog");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const view = VIEWS[Number(event.key) - 1];
  if (view) location.hash = view;
  else if (event.key === "?") help();
}

// its address would be a view's
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});
document.getElementById("key").addEventListener("click", askForKey);
document.getElementById("theme").addEventListener("click", nextTheme);
document.getElementById("help").addEventListener("click", help);
document.addEventListener("keydown", onKey);
addEventListener("hashchange", show);
server.addEventListener("change", tellState);

setTheme(localStorage.getItem("slimserve.theme") in THEMES ? localStorage.getItem("slimserve.theme") : "auto");
mountVariants(document.getElementById("variants"));
mountCompare(document.getElementById("compare"));
mountPlayground(document.getElementById("playground"));
mountLive(document.getElementById("live"));
mountJobs(document.getElementById("jobs"));
show();
server.start();
