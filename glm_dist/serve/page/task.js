/** Task: the form of what a model was tuned for, and its answer. */

import { element, find, findAll } from "./dom.js";
import { number, text } from "./language.js";
import { Runner } from "./runner.js";
import { model } from "./session.js";
import { drawShares } from "./shares.js";

/** Fields that are lists; the form takes an entry a line. */
const LISTS = new Set(["messages", "candidates"]);

const panel = find("#task");
const form = find("#task-fields");
const runner = new Runner(panel);
let answer = null;
let drawn = "";
let chosen = "";

/** What is asked: the model's task, or that of several which is chosen. */
const task = () => {
  const { task: whole } = model() ?? {};
  return whole?.tasks?.[chosen] ?? whole ?? null;
};

const names = () => Object.keys(model()?.task?.tasks ?? {});

const inputs = () => findAll("textarea", form);

/** What is written, as the task takes it; fields without anything are left out. */
function written() {
  const values = inputs().map(({ name, value }) => [name, value.trim()]).filter(([, value]) => value);
  return Object.fromEntries(values.map(([name, value]) => [
    name, LISTS.has(name) ? value.split("\n").map((line) => line.trim()).filter(Boolean) : value,
  ]));
}

/** The same with the name of its task, where the model has several. */
const named = () => (names().length ? { task: chosen, ...written() } : written());

const request = () => ({ path: `v1/tasks/${model()?.id}`, body: { input: named() } });

async function run() {
  if (runner.isRunning || !Object.keys(written()).length) return;
  await runner.run(request(), ({ data }) => { [answer] = data; }, run);
  drawAnswer();
}

/** The same answer, with what each word adds to it. */
async function explain() {
  if (runner.isRunning) return;
  const { path, body } = request();
  await runner.run({ path, body: { ...body, explain: true } }, ({ data }) => { [answer] = data; }, explain);
  drawAnswer();
}

/** The form of the model that is chosen; what is written stays where the fields do. */
function drawForm() {
  if (!names().includes(chosen)) [chosen = ""] = names();
  const { fields, optional_fields: optional } = task() ?? { fields: [], optional_fields: [] };
  const wanted = JSON.stringify([names(), chosen, fields, optional]);
  if (wanted === drawn) return;
  drawn = wanted;
  form.replaceChildren(...chooser(), ...[...fields, ...optional].flatMap((name) => {
    const label = element("label", { for: `task-${name}`, text: name });
    const input = element("textarea", { id: `task-${name}`, name, rows: name === fields[0] ? 3 : 2 });
    if (LISTS.has(name)) input.dataset.placeholder = "onePerLine";
    else if (optional.includes(name)) input.dataset.placeholder = "optional";
    if (input.dataset.placeholder) input.placeholder = text(input.dataset.placeholder);
    input.addEventListener("input", forget);
    return [label, input];
  }));
  forget();
}

/** Which of the model's tasks; nothing where it has one. */
function chooser() {
  if (!names().length) return [];
  const options = names().map((name) => element("option", { value: name, text: name }));
  const change = ({ target }) => { chosen = target.value; drawForm(); };
  const input = element("select", { id: "task-name", on: { change } }, ...options);
  input.value = chosen;
  return [element("label", { for: "task-name", text: "task" }), input];
}

function forget() {
  answer = null;
  drawAnswer();
}

function drawAnswer() {
  const node = find("#task-answer");
  node.replaceChildren(...(answer === null ? [] : [shown()]));
  drawShares(find("#task-shares"), answer?.probs);
  const isLabelled = task()?.kind === "classification" && answer !== null;
  find("#task-why").hidden = !isLabelled || Boolean(answer.explanation);
  find("#task-words").hidden = !answer?.explanation;
  find("#task-words p").replaceChildren(...weighed(answer?.explanation ?? []));
}

/** The words, each shaded by how far the label's log odds fall without it. */
function weighed(words) {
  const most = Math.max(...words.map(({ fall }) => Math.abs(fall)), Number.MIN_VALUE);
  return words.flatMap(({ text: word, fall }) => {
    const node = element("span", {
      class: fall < 0 ? "word against" : "word",
      title: number(fall, { maximumFractionDigits: 2, signDisplay: "always" }),
      text: word.trimStart(),
    });
    node.style.setProperty("--weight", `${(70 * Math.abs(fall)) / most}%`);
    return [word.slice(0, word.length - word.trimStart().length), node];
  });
}

function shown() {
  if (answer.spans) return marked();
  if (Array.isArray(answer.value)) {
    return element("ol", { class: "prose" }, ...answer.value.map((one) => element("li", { text: one })));
  }
  return element("p", { class: "prose", text: answer.value });
}

/** The tokens, with the spans that were found in them. */
function marked() {
  const { tokens, spans } = answer;
  const line = element("p", { class: "prose" });
  let done = 0;
  const plain = (end) => line.append(join(tokens.slice(done, end)));
  for (const { start, end, kind, text: inside } of spans) {
    plain(start);
    line.append(" ", element("mark", { class: "span" }, inside, element("small", { text: kind })), " ");
    done = end;
  }
  plain(tokens.length);
  return line;
}

const isHan = (token) => /^\p{Script=Han}/u.test(token);
const join = (tokens) => tokens.map((one, place) => (place && !isHan(one) && !isHan(tokens[place - 1]) ? ` ${one}` : one)).join("");

function showTab() {
  find("#tab-task").hidden = task() === null;
  drawForm();
}

find("#task-why").addEventListener("click", explain);
document.addEventListener("model", showTab);
document.addEventListener("language", () => {
  for (const input of inputs()) if (input.dataset.placeholder) input.placeholder = text(input.dataset.placeholder);
});

export const taskMode = {
  id: "task",
  runner,
  examples: [],
  request,
  run,
  /** Whether the model has anything to ask here. */
  isThere: () => task() !== null,
  start: showTab,
  isEmpty: () => inputs().every((input) => input.value === ""),
  clear: () => {
    for (const input of inputs()) input.value = "";
    forget();
    runner.clear();
    inputs()[0]?.focus();
  },
};
