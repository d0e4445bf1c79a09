// What satisfies given limits, and what `<base>/auto` means.

import { call } from "./api.js";
import { field, notify, tryForm } from "./dialog.js";
import { h } from "./dom.js";

/** The limits: field of the API, label, factor from what people write. */
const LIMITS = [
  ["max_kl", "KL at most", 1],
  ["max_memory_bytes", "Memory at most, MB", 1e6],
  ["min_tokens_per_s", "Tokens/s at least", 1],
  ["max_ttft_ms", "TTFT at most, ms", 1],
  ["max_perplexity_increase", "Perplexity increase at most, %", 0.01],
  ["streams", "at streams", 1],
];

/** The form and its answer, which goes when another base is chosen. base: the select. */
export function mountRecommend(base) {
  const answer = h("div", { "aria-live": "polite" });
  const fields = LIMITS.map(([name, label]) => field(label, h("input", { name, type: "number", min: 0, step: "any", class: "short" })));
  const problem = h("p", { class: "problem", role: "alert" });
  const recommend = h("button", { type: "submit", class: "primary" }, "Recommend");
  const follow = h("button", { type: "button", onclick: () => attempt(follow, () => store(base.value, limits(form))) }, "Let auto follow this");
  const attempt = (button, work) => tryForm(form, problem, button, work);
  const form = h(
    "form",
    { class: "bar" },
    ...fields,
    recommend,
    follow,
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(recommend, async () => {
      answer.replaceChildren(...show(await call("POST", "v1/recommend", { base: base.value, ...limits(form) })));
    });
  });
  base.addEventListener("change", () => answer.replaceChildren());
  return h("article", { class: "card" }, h("h3", {}, "Which one do I need?"), form, problem, answer);
}

function limits(form) {
  const data = new FormData(form);
  return Object.fromEntries(
    LIMITS.filter(([name]) => data.get(name) !== "").map(([name, , factor]) => {
      const value = Number(data.get(name)) * factor;
      return [name, name === "max_memory_bytes" ? Math.round(value) : value];
    }),
  );
}

function show(found) {
  const item = (name, reasons, isKept) => h("li", { class: isKept ? "kept" : "" }, h("strong", {}, name), `: ${reasons.join("; ")}`);
  const list = (title, tag, items) => (items.length ? [h("h4", {}, title), h(tag, {}, items)] : []);
  return [
    h("p", {}, `Limits: ${Object.entries(found.constraints).map(([name, value]) => `${name} ${value}`).join(", ")}`),
    ...list("These qualify, the best first", "ol", found.ranked.map((one) => item(one.variant, one.reasons, true))),
    found.ranked.length ? "" : h("p", { class: "empty" }, "No measured variant qualifies."),
    ...list("These do not", "ul", found.rejected.map((one) => item(one.variant, one.reasons))),
    ...list("Not measured", "ul", found.unmeasured.map((one) => item(one.variant, one.missing))),
    ...list("Worth making", "ul", found.suggestions.map((one) => item(one.method, [one.reason]))),
  ];
}

async function store(base, constraints) {
  const choice = await call("POST", "v1/auto", { base, ...constraints });
  notify(choice.variant ? `${choice.model} is ${choice.variant} now.` : `No variant satisfies that; ${choice.model} answers 409.`);
}
