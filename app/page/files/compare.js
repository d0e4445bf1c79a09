// The variants of one base by the numbers: two scatters, the table, and what satisfies given limits.

import { ApiError, call } from "./api.js";
import { colorOf } from "./colors.js";
import { ComparisonTable, nameOf } from "./comparison_table.js";
import { actButton, field, notify } from "./dialog.js";
import { h } from "./dom.js";
import { bytes, number } from "./format.js";
import { mountRecommend } from "./recommend.js";
import { scatter } from "./scatter.js";
import { server } from "./server.js";

/** Fill the section; it asks again when it is shown, another base is chosen, a variant has changed or a job has ended. */
export function mountCompare(section) {
  const base = h("select", { onchange: () => ask() });
  const recommend = mountRecommend(base);
  const streams = h("select", { onchange: () => ask() });
  const charts = h("div", { class: "charts" });
  const table = new ComparisonTable();
  const hint = h("p", { class: "hint" });
  const measure = actButton("Measure what is missing", () => measureMissing(found), { hidden: true });
  let found = null;
  let heldWhenAsked = "";

  const path = () => `v1/compare?base=${encodeURIComponent(base.value)}&streams=${streams.value || 1}`;

  async function ask() {
    if (!base.value) return;
    const asked = path();
    try {
      const answer = await call("GET", asked);
      // an answer that comes late, after another choice; and whoever has a point in focus keeps it
      if (asked !== path() || JSON.stringify(answer) === JSON.stringify(found)) return;
      found = answer;
      draw();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      clear(error.message);
    }
  }

  function draw() {
    const rows = found.data.map((row) => ({ ...row, level: row.levels.find((one) => one.streams === found.streams) }));
    const levels = rows.flatMap((row) => row.levels.map((one) => one.streams));
    setOptions(streams, [...new Set([1, found.streams, ...levels])].sort((a, b) => a - b));
    charts.replaceChildren(...drawCharts(rows));
    table.show(rows);
    measure.hidden = rows.every((row) => !row.missing.length);
    hint.textContent = explain(found);
  }

  function clear(problem) {
    found = null;
    heldWhenAsked = "";
    charts.replaceChildren();
    table.show([]);
    measure.hidden = true;
    hint.textContent = problem;
  }

  function update() {
    setOptions(base, server.bases.map((one) => one.id));
    for (const one of needing) one.hidden = !base.value;
    if (!base.value) clear(server.isKnown ? "No models yet: add one under Variants." : "");
    const variants = server.variants.map(({ id, state }) => [id, state]);
    const held = JSON.stringify([variants, server.jobs.map(({ id, finished }) => [id, finished])]);
    if (section.hidden || held === heldWhenAsked) return;
    heldWhenAsked = held;
    ask();
  }

  const downloads = ["csv", "markdown"].map((form) => actButton(`Download ${form}`, () => save(`${path()}&format=${form}`, base.value, form)));
  const choices = [field("Base", base), field("Streams", streams)];
  // what says nothing without a base
  const needing = [...choices, ...downloads, table.element, recommend];
  section.append(h("div", { class: "bar" }, h("h2", {}, "Compare"), choices, measure, downloads), charts, table.element, hint, recommend);
  section.addEventListener("shown", update);
  server.addEventListener("change", update);
}

function drawCharts(rows) {
  const point = (row, x) => ({ name: nameOf(row), x, kl: row.kl_mean, isPareto: row.is_pareto, color: colorOf(row.variant) });
  const compared = rows.filter((row) => row.kl_mean !== null);
  const speed = compared.filter((row) => row.level).map((row) => point(row, row.level.tokens_per_s));
  const memory = compared.map((row) => point(row, row.weight_bytes));
  return [
    figure("Quality against speed", speed, { label: "tokens per second", format: number, isMoreBetter: true }),
    figure("Quality against memory of the weights", memory, { label: "bytes of weights", format: bytes, isMoreBetter: false }),
  ];
}

function figure(title, points, axis) {
  const drawing = points.length ? scatter(points, axis) : h("p", { class: "empty" }, "Nothing is measured yet.");
  return h("figure", { class: "card" }, h("figcaption", {}, title), drawing);
}

function explain({ device, objectives }) {
  const where = device ? `Measured on ${device}. ` : "";
  return `${where}★ and filled: no other is at least as good in ${objectives.join(", ")} and better in one (the Pareto set).`;
}

/** Replace a select's options if they are others, and keep what is chosen. */
function setOptions(select, values) {
  const wanted = values.map(String);
  if ([...select.options].map((one) => one.value).join("\n") === wanted.join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...wanted.map((value) => h("option", { value }, value)));
  if (wanted.includes(chosen)) select.value = chosen;
}

async function measureMissing({ data }) {
  const rows = data.filter((row) => row.missing.length);
  for (const { variant, missing } of rows) {
    await call("POST", "v1/measure", { model: variant, quality: missing.includes("quality"), speed: missing.includes("speed") });
  }
  notify(`${rows.length} measurements are queued.`);
  await server.refresh({ again: true });
}

async function save(path, base, form) {
  const url = URL.createObjectURL(new Blob([await call("GET", path, undefined, { accept: "text" })]));
  h("a", { href: url, download: `${base}.${form === "csv" ? "csv" : "md"}` }).click();
  URL.revokeObjectURL(url);
}
