// One variant's answer in the playground: what has come so far, and where it parts from another's.

import { ApiError, events } from "./api.js";
import { colorOf } from "./colors.js";
import { h } from "./dom.js";
import { milliseconds, number } from "./format.js";

/** One variant's answer. */
export class Column {
  text = "";
  tokens = [];
  isDone = false;
  isThinking = false;

  constructor(id) {
    this.id = id;
    this.same = h("span");
    this.parted = h("mark");
    this.note = h("p", { class: "hint" }, "waiting");
    this.verdict = h("p", { class: "hint" });
    const answer = h("div", { class: "answer", tabindex: 0, role: "group", "aria-label": `Answer of ${id}` }, this.same, this.parted);
    this.element = h("article", { class: `card key ${colorOf(id)}` }, h("h3", {}, id), answer, this.note, this.verdict);
  }

  async run({ path, body }, signal, onNews) {
    try {
      for await (const { data } of events("POST", path, { model: this.id, ...body }, { signal })) {
        this.#take(data);
        onNews();
      }
      this.isDone = true;
      onNews();
    } catch (error) {
      if (error.name !== "AbortError" && !(error instanceof ApiError)) throw error;
      this.end = error instanceof ApiError ? error.message : "stopped";
      this.note.className = error instanceof ApiError ? "problem" : "hint";
      onNews();
    }
  }

  #take({ choices: [choice], usage, metrics }) {
    if (choice) {
      const thought = choice.delta?.reasoning_content ?? "";
      const said = choice.delta?.content ?? choice.text ?? "";
      if (said && this.isThinking) this.text += "\n\n";
      this.isThinking = thought !== "" || (this.isThinking && !said);
      this.text += thought + said;
      this.tokens.push(...(choice.token_ids ?? []));
    }
    if (usage) this.timings = describe(usage, metrics);
  }

  /** Show the text, and from which character on it is another than the reference's. */
  show(reference) {
    const same = reference === this ? this.text.length : commonPrefix(reference, this);
    this.same.textContent = this.text.slice(0, same);
    this.parted.textContent = this.text.slice(same);
    this.note.textContent = [this.#place(reference), this.timings, this.end].filter(Boolean).join(" · ") || "…";
  }

  #place(reference) {
    if (reference === this) return null;
    const token = partsAt(reference, this);
    if (token !== null) return `parts at token ${token + 1}`;
    return this.isDone && reference.isDone && this.text === reference.text ? "the same answer" : null;
  }
}

function describe({ completion_tokens }, metrics) {
  const parts = [`${completion_tokens} tokens`];
  if (metrics) {
    parts.push(`TTFT ${milliseconds(metrics.time_to_first_token_ms)}`, `TPOT ${milliseconds(metrics.mean_itl_ms)}`);
    if (metrics.tokens_per_second) parts.push(`${number(metrics.tokens_per_second)} tokens/s`);
  }
  return parts.join(" · ");
}

/** Number of characters that both begin with; what one has not written yet is no difference. */
function commonPrefix(one, other) {
  const length = Math.min(one.text.length, other.text.length);
  for (let index = 0; index < length; index += 1) {
    // a character of two halves is not cut between them
    if (one.text[index] !== other.text[index]) return /[\uD800-\uDBFF]/.test(one.text[index - 1] ?? "") ? index - 1 : index;
  }
  return one.isDone ? length : other.text.length;
}

/** Number of the first token that differs, or null. */
function partsAt(one, other) {
  const length = Math.min(one.tokens.length, other.tokens.length);
  for (let index = 0; index < length; index += 1) if (one.tokens[index] !== other.tokens[index]) return index;
  const isCut = one.isDone && other.isDone && one.tokens.length !== other.tokens.length;
  return isCut ? length : null;
}
