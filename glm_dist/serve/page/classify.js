/** Classify: which of some labels stands best at a mask. */

import { countTokens } from "./counter.js";
import { debounced, find } from "./dom.js";
import { text } from "./language.js";
import { parametersOf } from "./parameters.js";
import { Runner } from "./runner.js";
import { model } from "./session.js";
import { drawShares } from "./shares.js";
import { recall, remember } from "./store.js";

const panel = find("#classify");
const fields = { input: find("#classify-text"), labels: find("#classify-labels"), template: find("#classify-template") };
const runner = new Runner(panel);
let probs = null;

const labels = () => fields.labels.value.split(/[,，、;；\n]/).map((label) => label.trim()).filter(Boolean);

const count = countTokens(panel, () => {
  const written = fields.template.value.replace("{input}", fields.input.value).replace("[MASK]", "");
  return { body: written.trim() && { prompt: written }, added: 2, asked: 0 };
});

const request = () => ({
  path: "v1/classify",
  body: {
    model: model()?.id,
    input: fields.input.value,
    labels: labels(),
    template: fields.template.value || text("defaultTemplate"),
    ...parametersOf("classify"),
  },
});

async function classify() {
  if (runner.isRunning || !fields.input.value.trim()) return;
  await runner.run(request(), ({ data }) => { probs = data[0].probs; }, classify);
  draw();
}

const draw = () => drawShares(find("#shares"), probs);

const keep = debounced(500, () => {
  remember("classify", Object.fromEntries(Object.entries(fields).map(([name, node]) => [name, node.value])));
});

function changed() {
  probs = null;
  draw();
  count();
  keep();
}

for (const node of Object.values(fields)) node.addEventListener("input", changed);
document.addEventListener("language", draw);

/** An example is a text, its labels and the template, one a line. */
function use(content) {
  [fields.input.value, fields.labels.value, fields.template.value] = content.split("\n");
  changed();
}

export const classifyMode = {
  id: "classify",
  runner,
  examples: ["classifyExample1", "classifyExample2", "classifyExample3"],
  request,
  run: classify,
  use,
  start: () => {
    const kept = recall("classify", {});
    for (const [name, node] of Object.entries(fields)) node.value = kept[name] ?? "";
    fields.template.value ||= text("defaultTemplate");
    count();
  },
  isEmpty: () => fields.input.value === "",
  clear: () => {
    use(["", "", text("defaultTemplate")].join("\n"));
    runner.clear();
    fields.input.focus();
  },
};
