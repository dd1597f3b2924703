/** Chat: turns of a user and of the model. */

import { countTokens } from "./counter.js";
import { element, find } from "./dom.js";
import { text } from "./language.js";
import { maxTokensOf, parametersOf } from "./parameters.js";
import { drawTokens, makeReachable } from "./popover.js";
import { Runner } from "./runner.js";
import { model } from "./session.js";
import { Answer, tokensOfChat } from "./tokens.js";

const ALTERNATIVES_PER_TOKEN = 5;
const panel = find("#chat");
const input = find("#chat-text");
const system = find("#chat-system");
const list = find("#turns");
const runner = new Runner(panel);
let turns = []; // {role, content} and, of the model's, its answer

const messagesOf = (asked) => [
  ...(system.value.trim() ? [{ role: "system", content: system.value }] : []),
  ...asked.map(({ role, content }) => ({ role, content })),
];

const pending = () => (input.value.trim() ? [...turns, { role: "user", content: input.value }] : turns);

const count = countTokens(panel, () => ({
  body: messagesOf(pending()).length ? { messages: messagesOf(pending()) } : null,
  added: 0,
  asked: maxTokensOf("chat"),
}));

const requestFor = (asked) => ({
  path: "v1/chat/completions",
  body: {
    model: model()?.id,
    messages: messagesOf(asked),
    ...parametersOf("chat"),
    logprobs: true,
    top_logprobs: ALTERNATIVES_PER_TOKEN,
  },
});

function send() {
  if (runner.isRunning || !input.value.trim()) return;
  turns = pending();
  input.value = "";
  answer();
}

async function answer() {
  const request = requestFor(turns);
  const turn = { role: "assistant", content: "", answer: new Answer() };
  turns = [...turns, turn];
  draw();
  await runner.run(request, ({ choices = [] }) => {
    for (const choice of choices) {
      const said = choice.delta ?? choice.message;
      turn.answer.add(said.content, tokensOfChat(choice.logprobs), choice.finish_reason);
    }
    turn.content = turn.answer.text;
    drawTokens(list.lastElementChild.lastElementChild, turn.answer);
    list.scrollTop = list.scrollHeight;
  }, regenerate);
  if (!turn.content && !turn.answer.finishReason) turns = turns.filter((one) => one !== turn);
  draw();
}

/** Answers the last message of the user once more. */
function regenerate() {
  if (runner.isRunning) return;
  if (turns.at(-1)?.role === "assistant") turns = turns.slice(0, -1);
  if (turns.length) answer();
}

/** Takes a message back into the field, and what came after it away. */
function edit(place) {
  input.value = turns[place].content;
  turns = turns.slice(0, place);
  draw();
  input.focus();
}

function draw() {
  list.replaceChildren(...turns.map(turnNode));
  list.hidden = turns.length === 0;
  list.scrollTop = list.scrollHeight;
  find(".again", panel).disabled = !turns.length || runner.isRunning;
  count();
}

function turnNode(turn, place) {
  const said = element("div", { class: "said" });
  if (turn.answer) drawTokens(said, turn.answer);
  else said.textContent = turn.content;
  if (turn.answer && !runner.isRunning) makeReachable(said);
  const head = element("header", {}, element("span", { class: "who", text: text(turn.role) }));
  if (turn.role === "user" && !runner.isRunning) {
    head.append(element("button", { class: "quiet", type: "button", text: text("edit"), on: { click: () => edit(place) } }));
  }
  return element("article", { class: `turn ${turn.role}` }, head, said);
}

input.addEventListener("input", count);
system.addEventListener("input", count);
find(".again", panel).addEventListener("click", regenerate);
document.addEventListener("language", () => runner.isRunning || draw());

export const chatMode = {
  id: "chat",
  runner,
  examples: ["chatExample1", "chatExample2", "chatExample3"],
  request: () => requestFor(pending()),
  run: send,
  use: (content) => {
    input.value = content;
    input.focus();
    count();
  },
  start: draw,
  isEmpty: () => turns.length === 0 && input.value === "",
  clear: () => {
    turns = [];
    input.value = "";
    runner.clear();
    draw();
    input.focus();
  },
};
