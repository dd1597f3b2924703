/** The panel of parameters: what each mode starts with, and what of it a request has to say. */

import { element, find, findAll } from "./dom.js";
import { text } from "./language.js";
import { contextLength } from "./session.js";
import { recall, remember } from "./store.js";

const NEUTRAL = {
  top_k: 0,
  min_p: 0,
  repetition_penalty: 1,
  presence_penalty: 0,
  frequency_penalty: 0,
  seed: "",
  stop: "",
  order: "left_to_right",
};
const SAMPLED = { ...NEUTRAL, top_p: 1, stream: true };
const DEFAULTS = {
  fill: { ...SAMPLED, max_tokens: 8, temperature: 0.8, n: 4 },
  complete: { ...SAMPLED, max_tokens: 64, temperature: 0.7, top_p: 0.95 },
  chat: { ...SAMPLED, max_tokens: 128, temperature: 0.7, top_p: 0.95 },
  classify: { normalise_length: false },
  task: {},
};
const form = find("#parameter-form");
let mode = "fill";
let values = recall("parameters", {});

const valuesOf = (name) => ({ ...DEFAULTS[name], ...values[name] });

/** What a request of a mode says of its parameters; those that change nothing are left out. */
export function parametersOf(name) {
  const found = valuesOf(name);
  const asked = {};
  for (const [key, value] of Object.entries(found)) {
    if (key in NEUTRAL && value === NEUTRAL[key]) continue;
    asked[key] = key === "stop" ? value.replaceAll("\\n", "\n") : value;
  }
  if (asked.normalise_length === false || asked.stream === false) {
    delete asked.normalise_length;
    delete asked.stream;
  }
  if (asked.stream) asked.stream_options = { include_usage: true };
  return asked;
}

/** Longest answer that a mode asks for, in tokens. */
export const maxTokensOf = (name) => valuesOf(name).max_tokens ?? 0;

/** Shows the parameters of a mode. */
export function showParameters(name) {
  mode = name;
  for (const node of findAll("[data-modes]", form)) {
    node.hidden = !node.dataset.modes.split(" ").includes(mode);
  }
  find("details", form).hidden = ["classify", "task"].includes(mode);
  find("#parameters").hidden = mode === "task";
  for (const input of inputs()) write(input, valuesOf(mode)[input.name]);
}

const inputs = () => findAll("[name]", form);

function write(input, value) {
  if (value === undefined) return;
  if (input.type === "checkbox") input.checked = value;
  else input.value = value;
  const slider = find(`[data-of="${input.id}"]`, form);
  if (slider) slider.value = value;
}

/** What a field holds; null where it is outside of its range. */
function read(input) {
  if (input.type === "checkbox") return input.checked;
  if (input.type !== "number") return input.value;
  if (input.value === "" && input.name === "seed") return "";
  return input.value !== "" && input.validity.valid ? input.valueAsNumber : null;
}

function keep(input) {
  const value = read(input);
  input.setAttribute("aria-invalid", value === null);
  if (value === null) return;
  values = { ...values, [mode]: { ...values[mode], [input.name]: value } };
  remember("parameters", values);
  write(input, value);
  document.dispatchEvent(new Event("parameters"));
}

function addSlider(input) {
  const { id, min, max, step } = input;
  const slider = element("input", { type: "range", min, max, step, "data-of": id, "aria-labelledby": `${id}-label` });
  find(`label[for="${id}"]`, form).id = `${id}-label`;
  slider.addEventListener("input", () => {
    input.value = slider.value;
    keep(input);
  });
  input.after(slider);
}

for (const input of findAll("[data-slider]", form)) addSlider(input);
form.addEventListener("input", ({ target }) => target.name && keep(target));
form.addEventListener("change", ({ target }) => {
  if (target.name && read(target) === null) write(target, valuesOf(mode)[target.name]);
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", (event) => {
  event.preventDefault();
  values = { ...values, [mode]: {} };
  remember("parameters", values);
  showParameters(mode);
  document.dispatchEvent(new Event("parameters"));
});
document.addEventListener("model", () => {
  for (const input of [find("#max_tokens"), find("[data-of=max_tokens]")]) {
    input.max = contextLength() ?? input.max;
  }
});

const heat = find("#heat");
heat.checked = recall("heat", false);
document.body.dataset.heat = heat.checked;
heat.addEventListener("change", () => {
  document.body.dataset.heat = heat.checked;
  remember("heat", heat.checked);
});
heat.title = text("heatHelp");
document.addEventListener("language", () => { heat.title = text("heatHelp"); });
