// One prompt, several variants: their answers side by side as they come, and where each parts from the first.

import { call } from "./api.js";
import { colorOf } from "./colors.js";
import { Column } from "./column.js";
import { actButton, field } from "./dialog.js";
import { h, keep } from "./dom.js";
import { server } from "./server.js";

// A browser opens six connections to a server; the page's own questions need the others.
const NUM_AT_ONCE = 4;
const PROMPT = "Tell me a story about a little fox who finds a red balloon.";

/** Fill the section. */
export function mountPlayground(section) {
  const answers = h("div", { class: "answers" });
  const send = h("button", { type: "submit", class: "primary" }, "Send");
  const stop = h("button", { type: "button", disabled: true, onclick: () => running?.abort() }, "Stop");
  const judge = actButton("Ask the original", () => judgeAnswers(last, columns), { disabled: true });
  const choices = h("div");
  const form = promptForm(choices, [send, stop, judge]);
  let running = null;
  let last = null;
  let columns = [];

  async function run() {
    const data = new FormData(form);
    const ids = data.getAll("variant");
    if (!ids.length || running) return;
    running = new AbortController();
    last = requestOf(data);
    columns = ids.map((id) => new Column(id));
    answers.replaceChildren(...columns.map((column) => column.element));
    [send.disabled, stop.disabled, judge.disabled] = [true, false, true];
    const mark = () => columns.forEach((column) => column.show(columns[0]));
    const waiting = [...columns];
    const takeTurns = async () => {
      while (waiting.length) await waiting.shift().run(last, running.signal, mark);
    };
    await Promise.all(Array.from({ length: NUM_AT_ONCE }, takeTurns));
    running = null;
    [send.disabled, stop.disabled] = [false, true];
    judge.disabled = !columns.some((column) => column.tokens.length);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  section.append(h("h2", {}, "Playground"), form, answers);
  const update = () => keep(choices, server.variants.map(({ id, state }) => ({ id, state })), ({ id }) => id, choice);
  server.addEventListener("change", update);
  update();
}

function promptForm(choices, buttons) {
  const number = (name, attributes) => h("input", { name, type: "number", min: 0, class: "short", ...attributes });
  const forms = [["chat", "chat"], ["text", "text to go on with"]].map(([value, label]) => h("option", { value }, label));
  return h(
    "form",
    { class: "card" },
    field("Prompt", h("textarea", { name: "prompt", rows: 4, required: true, value: PROMPT })),
    h("fieldset", { class: "choices" }, h("legend", {}, "Variants; the others are held against the first"), choices),
    h(
      "div",
      { class: "bar" },
      field("As", h("select", { name: "form" }, forms)),
      field("Tokens at most", number("max_tokens", { min: 1, max: 4096, value: 128 })),
      field("Temperature", number("temperature", { max: 2, step: 0.1, value: 0 })),
      field("Seed", number("seed", { value: 0 })),
      ...buttons,
    ),
  );
}

function choice({ id, state }) {
  const hint = state === "ready" ? "" : state === "registered" ? " (is loaded when asked)" : ` (${state})`;
  const before = document.querySelector(`#playground input[value="${CSS.escape(id)}"]`);
  const input = h("input", { type: "checkbox", name: "variant", value: id, checked: before ? before.checked : state === "ready" });
  return h("label", { class: `key ${colorOf(id)}` }, input, ` ${id}`, h("small", {}, hint));
}

/** What every variant is asked, but for its name: route, body, and the part that POST /v1/compare/generate shares. */
function requestOf(data) {
  const prompt = data.get("prompt");
  const isChat = data.get("form") === "chat";
  const asked = isChat ? { messages: [{ role: "user", content: prompt }] } : { prompt };
  const params = { max_tokens: Number(data.get("max_tokens")), temperature: Number(data.get("temperature")), seed: Number(data.get("seed")) };
  return {
    path: isChat ? "v1/chat/completions" : "v1/completions",
    shared: { ...asked, ...params },
    body: { ...asked, ...params, stream: true, stream_options: { include_usage: true }, return_token_ids: true },
  };
}

/** Ask again, greedily or with the same seed, and have the uncompressed model say how likely it finds each answer. */
async function judgeAnswers({ shared }, columns) {
  const found = await call("POST", "v1/compare/generate", { variants: columns.map((column) => column.id), ...shared });
  for (const column of columns) {
    const answer = found.data.find((one) => one.variant === column.id);
    const mean = answer?.parent_logprob_mean;
    column.verdict.textContent =
      mean === null || mean === undefined
        ? "The uncompressed variant is not loaded, so nobody can judge."
        : `${found.parent} gives its tokens a mean log-probability of ${mean.toFixed(3)}.`;
  }
}
