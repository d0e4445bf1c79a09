// The table of a comparison: what each column shows, and sorting by any of them.

import { colorOf } from "./colors.js";
import { h, keep } from "./dom.js";
import { DASH, bytes, milliseconds, number, percent, seconds } from "./format.js";

/** The second part of a row's variant, which tells the variants of one base apart. */
export const nameOf = (row) => row.variant.split("/").slice(1).join("/");

/** The columns: head, the value to sort by, and how it is shown. */
const COLUMNS = [
  ["Variant", (row) => row.variant, (row) => (row.is_pareto ? `★ ${nameOf(row)}` : nameOf(row))],
  ["Weights", (row) => row.weight_bytes, (row) => bytes(row.weight_bytes)],
  ["Bits", (row) => row.bits_per_weight, (row) => row.bits_per_weight.toFixed(2)],
  ["Memory", (row) => row.peak_bytes, (row) => bytes(row.peak_bytes)],
  ["KL", (row) => row.kl_mean, (row) => withInterval(row.kl_mean, row.kl_mean_interval)],
  ["Same 1st", (row) => row.top1_agreement, (row) => percent(row.top1_agreement)],
  ["Perplexity", (row) => row.perplexity, (row) => withInterval(row.perplexity, row.perplexity_interval)],
  ["Tokens/s", (row) => row.level?.tokens_per_s, speedOf],
  ["TTFT", (row) => row.level?.ttft_ms, (row) => milliseconds(row.level?.ttft_ms)],
  ["TPOT", (row) => row.level?.tpot_ms, (row) => milliseconds(row.level?.tpot_ms)],
  ["Load", (row) => row.load_s, (row) => seconds(row.load_s)],
  ["Missing", (row) => row.missing.join(", "), missingOf],
];

/** A table that shows rows of GET /v1/compare, each with the `level` of the chosen streams. */
export class ComparisonTable {
  #rows = [];
  #column = 1;
  #isDown = false;
  #body = h("tbody");
  #heads = COLUMNS.map(([label], index) => h("button", { type: "button", class: "link", onclick: () => this.#sortBy(index) }, label));
  element = h(
    "div",
    { class: "table" },
    h("table", {}, h("thead", {}, h("tr", {}, this.#heads.map((head) => h("th", { scope: "col" }, head)))), this.#body),
  );

  show(rows) {
    this.#rows = rows;
    this.#draw();
  }

  #sortBy(index) {
    this.#isDown = this.#column === index && !this.#isDown;
    this.#column = index;
    this.#draw();
  }

  #draw() {
    for (const [index, head] of this.#heads.entries()) {
      head.parentElement.ariaSort = index === this.#column ? (this.#isDown ? "descending" : "ascending") : null;
    }
    keep(this.#body, this.#sorted(), (row) => row.variant, tableRow);
  }

  /** What was not measured comes last, whichever way. */
  #sorted() {
    const [, value] = COLUMNS[this.#column];
    const sign = this.#isDown ? -1 : 1;
    const has = (row) => value(row) !== null && value(row) !== undefined;
    const order = (a, b) => (value(a) < value(b) ? -sign : value(a) > value(b) ? sign : 0);
    return [...this.#rows.filter(has).sort(order), ...this.#rows.filter((row) => !has(row))];
  }
}

/** A speed that was taken in company says so. */
function speedOf({ level, neighbours }) {
  if (!level || !neighbours.length) return number(level?.tokens_per_s);
  return h("span", { title: `not alone when it was measured: ${neighbours.join(", ")} worked meanwhile` }, `${number(level.tokens_per_s)} (not alone)`);
}

function missingOf({ missing, measured_otherwise: otherwise }) {
  if (!otherwise.length) return missing.join(", ") || DASH;
  const title = `${otherwise.join(", ")}: measured on another text, in other windows, with another workload or on another machine than most variants`;
  return h("span", { title }, missing.map((name) => (otherwise.includes(name) ? `${name} (measured otherwise)` : name)).join(", "));
}

function withInterval(value, interval) {
  return interval ? h("span", { title: `95 %: ${interval.map(number).join(" to ")}` }, number(value)) : number(value);
}

function tableRow(row) {
  const [[, , name], ...others] = COLUMNS;
  return h(
    "tr",
    { class: row.is_pareto ? "member" : "" },
    h("th", { scope: "row", class: `key ${colorOf(row.variant)}` }, name(row)),
    others.map(([, , shown]) => h("td", { class: "number" }, shown(row))),
  );
}
