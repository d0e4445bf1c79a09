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

  constructor(id) {
    this.id = id;
    this.same = h("span");
    this.parted = h("mark");
    this.note = h("p", { class: "hint" }, "waiting");
    this.verdict = h("p", { class: "hint" });
    const answer = h("div", { class: "answer", tabindex: 0, "aria-label": `Answer of ${id}` }, this.same, this.parted);
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
      this.note.className = error.name === "AbortError" ? "hint" : "problem";
      if (error.name === "AbortError") this.note.textContent = "stopped";
      else if (error instanceof ApiError) this.note.textContent = error.message;
      else throw error;
    }
  }

  #take({ choices: [choice], usage, metrics }) {
    if (choice) {
      this.text += (choice.delta?.reasoning_content ?? "") + (choice.delta?.content ?? choice.text ?? "");
      this.tokens.push(...(choice.token_ids ?? []));
    }
    if (usage) this.timings = describe(usage, metrics);
  }

  /** Show the text, and from which character on it is another than the reference's. */
  show(reference) {
    const same = reference === this ? this.text.length : commonPrefix(reference, this);
    this.same.textContent = this.text.slice(0, same);
    this.parted.textContent = this.text.slice(same);
    const parts = reference === this ? null : partsAt(reference, this);
    const place = parts === null ? (reference !== this && this.isDone && reference.isDone ? "the same answer" : null) : `parts at token ${parts + 1}`;
    this.note.textContent = [place, this.timings].filter(Boolean).join(" · ") || "…";
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
  for (let index = 0; index < length; index += 1) if (one.text[index] !== other.text[index]) return index;
  return one.isDone ? length : other.text.length;
}

/** Number of the first token that differs, or null. */
function partsAt(one, other) {
  const length = Math.min(one.tokens.length, other.tokens.length);
  for (let index = 0; index < length; index += 1) if (one.tokens[index] !== other.tokens[index]) return index;
  const isCut = one.isDone && other.isDone && one.tokens.length !== other.tokens.length;
  return isCut ? length : null;
}
