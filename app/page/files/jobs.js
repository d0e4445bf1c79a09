// Jobs: what was asked for, how far it is, what came of it.

import { call } from "./api.js";
import { actButton, notify, tell } from "./dialog.js";
import { h, headRow, keep } from "./dom.js";
import { DASH, bytes, number, percent, seconds, time } from "./format.js";
import { isOpen, progressBar } from "./progress.js";
import { server } from "./server.js";

const MORE = 50;

/** Fill the section and keep it up to date. */
export function mountJobs(section) {
  const body = h("tbody");
  const empty = h("p", { class: "empty" }, "No jobs yet: compress or measure a variant.");
  const more = actButton("Show older ones", showMore);
  const heads = ["State", "Job", "Variant", "Asked for", "Took", "Outcome", "Actions"];
  const table = h(
    "div",
    { class: "table" },
    h("table", {}, headRow(heads), body),
  );
  section.append(h("h2", {}, "Jobs"), h("p", {}, "One runs at a time; the others wait in order."), table, empty, more);
  const update = () => {
    keep(body, server.jobs, (job) => job.id, row);
    empty.hidden = server.jobs.length > 0;
    table.hidden = !server.jobs.length;
    more.hidden = server.jobs.length < server.jobLimit;
  };
  server.addEventListener("change", update);
  update();
}

function showMore() {
  server.jobLimit += MORE;
  return server.refresh({ again: true });
}

function row(job) {
  return h(
    "tr",
    {},
    h("td", {}, h("span", { class: `badge ${job.state}` }, job.state)),
    h("td", {}, job.method ? `${job.kind} ${job.method}` : job.kind),
    h("td", {}, job.variant ?? DASH),
    h("td", {}, time(job.created)),
    h("td", { class: "number" }, seconds(job.finished && job.started ? job.finished - job.started : null)),
    h("td", { class: "outcome" }, isOpen(job) ? progressBar(job) : outcome(job)),
    h("td", { class: "buttons" }, buttons(job)),
  );
}

function outcome(job) {
  if (job.error) return h("span", { class: "problem" }, `${job.error.code}: ${job.error.message}`);
  const { result } = job;
  if (!result) return DASH;
  if (job.kind === "measure") return measured(result);
  return `${bytes(result.weight_bytes)} · KL ${number(result.kl_mean)} · ${percent(result.top1_agreement)} same first choice`;
}

function measured({ quality, speed }) {
  const parts = [];
  if (quality) parts.push(`perplexity ${number(quality.perplexity)}`, `KL ${number(quality.kl_mean)}`);
  for (const level of speed?.levels ?? []) parts.push(`${number(level.tokens_per_s)} tokens/s at ${level.streams}`);
  return parts.join(" · ");
}

function buttons(job) {
  const cancel = async () => {
    await call("POST", `v1/jobs/${job.id}/cancel`);
    notify(`${job.kind} of ${job.variant} was cancelled.`);
    await server.refresh({ again: true });
  };
  const details = () => tell(`Job ${job.id}`, h("pre", { tabindex: 0 }, JSON.stringify(job, null, 2)));
  return [
    isOpen(job) && actButton("Cancel", cancel, { "data-action": "cancel" }),
    h("button", { type: "button", "data-action": "details", onclick: details }, "Details"),
  ];
}
