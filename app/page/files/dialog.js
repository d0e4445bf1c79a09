// Dialogs and notices: native <dialog> elements, so focus, Escape and the backdrop are the browser's own.

import { ApiError } from "./api.js";
import { h } from "./dom.js";

let numFields = 0;

/**
 * Open a form; `submit` gets its FormData and may throw ApiError, which is shown in the form, at the field it names
 * (fields are named as in the API). Resolves when the dialog is closed, with what submit returned or undefined.
 */
export function ask({ title, body, action = "OK", danger = false, submit }) {
  return new Promise((resolve) => {
    let result;
    const problem = h("p", { class: "problem", role: "alert" });
    const go = h("button", { type: "submit", class: danger ? "danger" : "primary" }, action);
    const form = h(
      "form",
      { method: "dialog" },
      h("h2", {}, title),
      ...[body].flat(),
      problem,
      h("div", { class: "actions" }, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), go),
    );
    const dialog = h("dialog", { "aria-label": title, onclose: () => (dialog.remove(), resolve(result)) }, form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      tryForm(form, problem, go, async () => {
        result = await submit(new FormData(form));
        dialog.close();
      });
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/**
 * Do something with a form for a button of it: the button is disabled meanwhile, and what the server refuses is told in
 * `problem` and at the field that it names.
 */
export async function tryForm(form, problem, button, work) {
  button.disabled = true;
  problem.textContent = "";
  for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  try {
    await work();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    problem.textContent = error.message;
    const field = error.param && form.elements.namedItem(error.param);
    if (field instanceof HTMLElement) {
      field.setAttribute("aria-invalid", "true");
      field.focus();
    }
  } finally {
    button.disabled = false;
  }
}

/** Show something to read. */
export function tell(title, ...body) {
  const close = h("button", { type: "button", class: "primary", onclick: () => dialog.close() }, "Close");
  const dialog = h(
    "dialog",
    { "aria-label": title, class: "wide", onclose: () => dialog.remove() },
    h("h2", {}, title),
    ...body,
    h("div", { class: "actions" }, close),
  );
  document.body.append(dialog);
  dialog.showModal();
}

/** A line at the edge of the page; failures stay until they are closed. */
export function notify(text, { isFailure = false } = {}) {
  const close = h("button", { type: "button", "aria-label": "Close this notice", onclick: () => notice.remove() }, "×");
  const notice = h("div", { class: isFailure ? "notice failure" : "notice" }, h("span", {}, text), close);
  document.getElementById("notices").append(notice);
  if (!isFailure) setTimeout(() => notice.remove(), 6000);
}

/** Do something for a button: it is disabled meanwhile, and what the server refuses becomes a notice. */
export async function act(button, work) {
  button.disabled = true;
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    notify(error.message, { isFailure: true });
    return undefined;
  } finally {
    button.disabled = false;
  }
}

/** A button that does something by `act`. */
export function actButton(label, work, attributes = {}) {
  return h("button", { type: "button", onclick: (event) => act(event.currentTarget, work), ...attributes }, label);
}

/** A labelled field of a form; the hint is its description. */
export function field(label, input, hint) {
  numFields += 1;
  input.id = `field-${numFields}`;
  if (hint) input.setAttribute("aria-describedby", `${input.id}-hint`);
  return h(
    "div",
    { class: "field" },
    h("label", { for: input.id }, label),
    input,
    hint ? h("small", { id: `${input.id}-hint` }, hint) : null,
  );
}
