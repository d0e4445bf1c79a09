// The forms that make something: a base from a folder or hub id, a variant from a base.

import { ApiError, call } from "./api.js";
import { ask, field, notify } from "./dialog.js";
import { h } from "./dom.js";
import { server } from "./server.js";

const FIRST_METHOD = "gptq";
const CALIBRATION = [
  ["num_samples", 32, "windows that are cut from the text"],
  ["sequence_length", 512, "tokens per window"],
];

/** Register a model. */
export async function addModel() {
  const added = await ask({
    title: "Add a model",
    body: [
      field("Model", h("input", { name: "model", required: true, autofocus: true }), "A folder on the server, or a hub id such as Qwen/Qwen3-0.6B"),
      field("Name", h("input", { name: "name" }), "Empty: the last part of the model"),
    ],
    action: "Add",
    submit: async (form) => {
      const body = { model: form.get("model").trim(), wait: false };
      if (form.get("name").trim()) body.name = form.get("name").trim();
      return call("POST", "v1/bases", body);
    },
  });
  if (!added) return;
  notify(`${added.id ?? "The model"} is being added.`);
  await server.refresh({ again: true });
}

/** Start a compression of the base. */
export async function compress(base) {
  const options = h("fieldset", {});
  const about = h("p", { class: "hint" });
  const select = h(
    "select",
    { name: "method", autofocus: true, onchange: () => showOptions() },
    server.methods.map((one) => h("option", { value: one.method, selected: one.method === FIRST_METHOD }, one.method)),
  );
  const chosen = () => server.methods.find((one) => one.method === select.value);
  const showOptions = () => {
    const method = chosen();
    about.textContent = `${method.summary} ${method.details}`;
    const fields = Object.entries(method.options).map(([name, schema]) => optionField(name, schema));
    options.replaceChildren(h("legend", {}, "Options"), ...fields, ...(method.needs_calibration ? calibrationFields() : []));
    options.hidden = options.childElementCount === 1;
  };
  showOptions();
  const job = await ask({
    title: `Compress ${base.id}`,
    body: [
      field("Method", select),
      about,
      options,
      field("Name", h("input", { name: "name" }), "Second part of the new variant's id. Empty: after the method and its options"),
    ],
    action: "Compress",
    submit: (form) => call("POST", "v1/quantize", quantizeBody(base, chosen(), form)),
  });
  if (!job) return;
  notify(`${job.variant} is being made.`);
  await server.refresh({ again: true });
}

function optionField(name, schema) {
  const input = inputFor(`options.${name}`, schema);
  const [low, high] = [schema.minimum ?? schema.exclusiveMinimum, schema.maximum];
  const range = low !== undefined && high !== undefined && high < 2 ** 50 ? `${low} to ${high}` : null;
  return field(name, input, name === "group_size" ? `${range}; -1: one group per row` : range);
}

/** A field for a JSON Schema of the kinds that options have. */
function inputFor(name, schema) {
  if (schema.enum) {
    const choices = schema.enum.map((one) => h("option", { value: String(one), selected: one === schema.default }, String(one)));
    return h("select", { name }, choices);
  }
  if (schema.type === "boolean") return h("input", { name, type: "checkbox", checked: schema.default });
  if (schema.type === "array") return h("input", { name, value: schema.default.join(", ") });
  return h("input", { name, inputmode: "decimal", value: schema.default === null ? "" : String(schema.default) });
}

function calibrationFields() {
  return CALIBRATION.map(([name, value, hint]) =>
    field(name, h("input", { name: `calibration.${name}`, inputmode: "numeric", value: String(value) }), hint),
  );
}

function quantizeBody(base, method, form) {
  const body = { model: base.id, method: method.method, options: {} };
  for (const [name, schema] of Object.entries(method.options)) {
    const value = optionValue(form, `options.${name}`, schema);
    if (value !== null) body.options[name] = value;
  }
  if (form.get("name").trim()) body.name = form.get("name").trim();
  if (method.needs_calibration) {
    body.calibration = {};
    for (const [name] of CALIBRATION) body.calibration[name] = numberOf(form.get(`calibration.${name}`), `calibration.${name}`);
  }
  return body;
}

function optionValue(form, name, schema) {
  if (schema.type === "boolean") return form.get(name) !== null;
  const text = form.get(name).trim();
  if (schema.enum) return schema.enum.find((one) => String(one) === text);
  if (text === "") return null;
  return schema.type === "array" ? text.split(",").map((part) => numberOf(part, name)) : numberOf(text, name);
}

function numberOf(text, param) {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new ApiError(0, { message: `'${text}' is no number.`, param });
  return value;
}
