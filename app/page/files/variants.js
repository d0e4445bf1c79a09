// Bases and their variants: load, unload, measure, delete, compress.

import { call, key } from "./api.js";
import { addModel, compress } from "./compress.js";
import { actButton, ask, notify, tell } from "./dialog.js";
import { h, headRow, keep } from "./dom.js";
import { DASH, bytes, count, number, parameters, percent, seconds } from "./format.js";
import { isOpen, progressBar } from "./progress.js";
import { server } from "./server.js";

const HEADS = ["Variant", "State", "Format", "Weights", "Memory", "KL", "Same 1st", "Requests", "Actions"];
const FACTS = [
  ["architecture", "Architecture"],
  ["lane", "Lane"],
  ["lane_reason", "Why this lane"],
  ["kernel", "Kernel"],
  ["dtype", "Computed in"],
  ["device_name", "Device"],
  ["max_model_len", "Context", count],
  ["bytes_on_disk", "On disk", bytes],
  ["weight_bytes", "Weights", bytes],
  ["kv_cache_bytes", "KV cache", bytes],
  ["process_bytes", "Worker's memory", bytes],
  ["measured_bytes", "Its most so far", bytes],
  ["estimated_bytes", "Estimated need", bytes],
  ["load_s", "Load time", seconds],
  ["restarts", "Restarts", count],
  ["pinned", "Pinned", (value) => (value ? "yes: never evicted" : "no")],
];

/** Fill the section and keep it up to date. */
export function mountVariants(section) {
  const bases = h("div");
  const add = h("button", { type: "button", onclick: addModel }, "Add a model…");
  const none = h("p", { class: "empty", hidden: true }, "No models yet. Add one: a folder of this server, or a model of the hub.");
  section.append(h("div", { class: "bar" }, h("h2", {}, "Models and variants"), add), none, bases);
  const update = () => {
    none.hidden = !server.isKnown || server.bases.length > 0;
    keep(bases, server.bases, (base) => base.id, card);
    for (const one of bases.children) one.update();
  };
  server.addEventListener("change", update);
  update();
}

/** The card of a base; its `update` shows what variants and jobs the base has now, each row by itself. */
function card(base) {
  const rows = h("tbody");
  const jobs = h("div", { class: "jobs" });
  const facts = [
    base.architecture,
    base.num_parameters && `${parameters(base.num_parameters)} parameters`,
    base.weight_bytes && bytes(base.weight_bytes),
    base.max_model_len && `context ${count(base.max_model_len)}`,
  ];
  const make = h("button", { type: "button", "aria-label": `Compress… ${base.id}`, onclick: () => compress(base) }, "Compress…");
  const element = h(
    "article",
    { class: "card", "aria-label": base.id },
    h("div", { class: "bar" }, h("h3", {}, base.id), h("span", { class: "facts-line" }, facts.filter(Boolean).join(" · ")), make),
    h("div", { class: "table" }, h("table", {}, headRow(HEADS), rows)),
    jobs,
  );
  element.update = () => {
    const open = server.jobs.filter((job) => job.base === base.id && isOpen(job));
    keep(rows, server.variants.filter((one) => one.base === base.id), (variant) => variant.id, row);
    keep(jobs, open, (job) => job.id, (job) =>
      h("div", { class: "job" }, h("strong", {}, `${job.kind} ${job.variant}`), progressBar(job)),
    );
  };
  return element;
}

function row(variant) {
  const name = variant.id.slice(variant.base.length + 1);
  const format = variant.group_size ? `${variant.format}, groups of ${variant.group_size}` : variant.format;
  const requests = variant.waiting ? `${variant.running} + ${variant.waiting} waiting` : String(variant.running);
  const memory = variant.process_bytes
    ? bytes(variant.process_bytes)
    : h("span", { class: "dim", title: "not loaded: what it is expected to take" }, `≈ ${bytes(variant.estimated_bytes)}`);
  const weights = variant.weight_bytes
    ? bytes(variant.weight_bytes)
    : h("span", { class: "dim", title: "not loaded: what its files take" }, bytes(variant.bytes_on_disk || null));
  const details = () => showDetails(variant);
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, h("button", { type: "button", class: "link", "data-action": `details ${variant.id}`, onclick: details }, name)),
    h("td", {}, h("span", { class: `badge ${variant.state}`, title: variant.reason }, variant.state)),
    h("td", {}, format),
    h("td", { class: "number" }, weights),
    h("td", { class: "number" }, memory),
    h("td", { class: "number" }, number(variant.quality?.kl_mean)),
    h("td", { class: "number" }, percent(variant.quality?.top1_agreement)),
    h("td", { class: "number" }, variant.state === "ready" ? requests : DASH),
    h("td", { class: "buttons" }, buttons(variant)),
  );
}

const isServed = ({ state }) => ["ready", "restarting"].includes(state);

function buttons(variant) {
  const { id, state } = variant;
  const isLoaded = isServed(variant);
  const canLoad = ["registered", "failed"].includes(state);
  const button = (name, work, attributes = {}) =>
    actButton(name, work, { "data-action": `${name} ${id}`, "aria-label": `${name} ${id}`, ...attributes });
  return [
    canLoad && button("Load", () => change("v1/load", { model: id, wait: false })),
    isLoaded && button("Unload", () => change("v1/unload", { model: id, wait: false })),
    !isLoaded && !canLoad && button("Load", () => {}, { disabled: true }),
    button("Measure", () => startMeasuring(id), { disabled: state === "quarantined" }),
    button("Delete", () => remove(variant)),
  ];
}

async function change(path, body) {
  await call("POST", path, body);
  await server.refresh({ again: true });
}

async function startMeasuring(id) {
  await change("v1/measure", { model: id });
  notify(`${id} is being measured: quality, and speed at several streams.`);
}

function remove(variant) {
  const isLoaded = isServed(variant);
  return ask({
    title: `Delete ${variant.id}?`,
    body: h("p", {}, isLoaded ? "It is loaded: its requests end, and its files are removed." : "Its files are removed."),
    action: "Delete",
    danger: true,
    submit: async () => {
      await call("DELETE", `v1/variants/${variant.id}${isLoaded ? "?force=true" : ""}`);
      await server.refresh({ again: true });
    },
  });
}

function showDetails(variant) {
  const request = { model: variant.id, messages: [{ role: "user", content: "Hello" }] };
  const curl = [
    `curl ${new URL("v1/chat/completions", document.baseURI)} \\`,
    ...(key.get() ? ['  -H "authorization: Bearer $SLIMSERVE_KEY" \\'] : []),
    "  -H 'content-type: application/json' \\",
    `  -d '${JSON.stringify(request)}'`,
  ].join("\n");
  const facts = FACTS.filter(([name]) => variant[name] !== null && variant[name] !== "" && variant[name] !== undefined);
  tell(
    variant.id,
    variant.reason ? h("p", { class: "problem" }, variant.reason) : "",
    h(
      "dl",
      { class: "facts" },
      ...facts.flatMap(([name, label, format = String]) => [h("dt", {}, label), h("dd", {}, format(variant[name]))]),
    ),
    h("h3", {}, "Ask it"),
    h("pre", { tabindex: 0 }, curl),
  );
}
