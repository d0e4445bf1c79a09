// A job's progress: the bar, and what is done now.

import { h } from "./dom.js";
import { bytes, number, percent, seconds } from "./format.js";

export const isOpen = (job) => ["queued", "running", "publishing"].includes(job.state);

/** The bar of a job that has not ended. */
export function progressBar(job) {
  const now = job.progress;
  const label = `${job.kind} ${job.variant}`;
  if (job.state === "queued") return h("div", { class: "progress" }, "waits for the jobs before it");
  if (!now) return h("div", { class: "progress" }, h("progress", { "aria-label": label }), h("span", {}, job.state));
  return h(
    "div",
    { class: "progress" },
    h("progress", { max: 1, value: now.ratio, "aria-label": label }),
    h("span", {}, describe(now)),
  );
}

function describe(now) {
  const parts = [percent(now.ratio), now.phase];
  if (now.layer !== null && now.num_layers) parts.push(`layer ${now.layer + 1} of ${now.num_layers}`);
  if (now.module) parts.push(now.module);
  if (now.error_after !== null) {
    const before = now.error_before === null ? "" : ` (rounded ${number(now.error_before)})`;
    parts.push(`error ${number(now.error_after)}${before}`);
  }
  if (now.eta_s !== null) parts.push(`${seconds(now.eta_s)} left of this phase`);
  if (now.rss_bytes) parts.push(bytes(now.rss_bytes));
  return parts.join(" · ");
}
