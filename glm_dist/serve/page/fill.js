/** Fill the blanks: the mode that only a GLM has. */

import { debounced, find } from "./dom.js";
import { BlankCards } from "./cards.js";
import { countTokens } from "./counter.js";
import { Editor } from "./editor.js";
import { maxTokensOf, parametersOf } from "./parameters.js";
import { Runner } from "./runner.js";
import { model } from "./session.js";
import { recall, remember } from "./store.js";
import { Answer, tokensOfChat } from "./tokens.js";

const ALTERNATIVES_PER_TOKEN = 5;
const panel = find("#fill");
const editor = new Editor(find("#fill-text"));
const runner = new Runner(panel);
const cards = new BlankCards(find("#blanks"), editor, {
  regenerate: (blank) => fill(unfilled().add(blank)),
  isBusy: () => runner.isRunning,
});
const count = countTokens(panel, () => {
  const written = editor.pieces.map((piece) => (typeof piece === "string" ? piece : piece.state === "accepted" ? piece.fill : "")).join("");
  const open = editor.blanks.filter((blank) => blank.state !== "accepted").length;
  return { body: written && { prompt: written }, added: open + 1, asked: open * maxTokensOf("fill") };
});

const unfilled = () => new Set(editor.blanks.filter((blank) => blank.fill === "" && blank.state !== "accepted"));
const openBlanks = () => new Set(editor.blanks.filter((blank) => blank.state !== "accepted"));

/** What is asked when these blanks are to be filled; all others stand as they are. */
function requestFor(blanks) {
  const input = editor.pieces.map((piece) => {
    if (typeof piece === "string") return piece;
    return blanks.has(piece) ? piece.mask : piece.fill;
  });
  return {
    path: "v1/infill",
    body: {
      model: model()?.id,
      input: input.join(""),
      ...parametersOf("fill"),
      logprobs: ALTERNATIVES_PER_TOKEN,
    },
  };
}

async function fill(blanks) {
  if (!blanks.size || runner.isRunning) return;
  const request = requestFor(blanks);
  const asked = editor.blanks.filter((blank) => blanks.has(blank));
  const samples = Array.from({ length: request.body.n }, () => asked.map(() => new Answer()));
  asked.forEach((blank, place) => {
    Object.assign(blank, { state: "filling", fill: "", alternatives: samples.map((answers) => answers[place]) });
  });
  editor.isLocked = true;
  redraw();
  await runner.run(request, (part) => {
    for (const { sample, place, text, logprobs, reason } of arrivals(part)) {
      samples[sample][place].add(text, tokensOfChat(logprobs), reason);
      if (sample === 0) asked[place].fill = samples[0][place].text;
    }
    redraw();
  }, () => fill(blanks));
  editor.isLocked = false;
  settle(asked, samples);
  redraw();
}

/** What came, of a stream and of a whole reply alike. */
function arrivals({ choices = [] }) {
  return choices.flatMap((choice) => (choice.blanks ?? [choice]).map((one) => ({
    sample: choice.index,
    place: choice.blanks ? one.index : one.blank_index,
    text: choice.blanks ? one.text : one.delta.text,
    logprobs: one.logprobs,
    reason: one.finish_reason,
  })));
}

/** Shows the likeliest of the samples as a whole, so that its blanks fit each other. */
function settle(asked, samples) {
  const whole = samples.filter((answers) => answers.every((answer) => answer.finishReason !== null));
  const logprob = (answers) => answers.reduce((sum, answer) => sum + answer.logprob, 0);
  const best = whole.reduce((a, b) => (a && logprob(a) >= logprob(b) ? a : b), null) ?? samples[0];
  asked.forEach((blank, place) => {
    blank.fill = best[place].text;
    blank.alternatives = distinct(blank.alternatives.filter((answer) => answer.finishReason !== null));
    blank.state = blank.fill || blank.alternatives.length ? "filled" : "empty";
  });
}

/** Answers without repetitions, the likeliest first. */
function distinct(answers) {
  const found = new Map(answers.map((answer) => [answer.text, answer]));
  return [...found.values()].sort((a, b) => b.logprob - a.logprob);
}

function redraw() {
  editor.draw();
  cards.draw();
}

editor.onChange = () => {
  cards.draw();
  count();
  keep();
};
editor.onPick = (blank) => cards.focus(blank);
const keep = debounced(500, () => remember("fill", source()));
const source = () => editor.pieces.map((piece) => (typeof piece === "string" ? piece : piece.state === "accepted" ? piece.fill : piece.mask)).join("");

find("#make-blank").addEventListener("pointerdown", (event) => event.preventDefault());
find("#make-blank").addEventListener("click", () => editor.makeBlank());
find("#accept-all").addEventListener("click", () => {
  for (const blank of editor.blanks) if (blank.fill) blank.state = "accepted";
  redraw();
  count();
});

const bubble = find("#bubble");
document.addEventListener("selectionchange", () => {
  bubble.hidden = !editor.hasSelection || editor.isLocked;
  if (bubble.hidden) return;
  const around = document.getSelection().getRangeAt(0).getBoundingClientRect();
  bubble.style.left = `${around.left + around.width / 2 + window.scrollX}px`;
  bubble.style.top = `${around.top + window.scrollY}px`;
});
bubble.addEventListener("pointerdown", (event) => event.preventDefault());
bubble.addEventListener("click", () => {
  editor.makeBlank();
  bubble.hidden = true;
});

/** The mode, as the page drives it. */
export const fillMode = {
  id: "fill",
  runner,
  examples: ["fillExample1", "fillExample2", "fillExample3"],
  request: () => requestFor(openBlanks().size ? openBlanks() : new Set(editor.blanks)),
  run: () => fill(openBlanks()),
  use: (content) => editor.write(content),
  makeBlank: () => editor.makeBlank(),
  start: () => editor.write(recall("fill", "")),
  isEmpty: () => editor.pieces.length === 0,
  clear: () => {
    editor.write("");
    runner.clear();
    editor.node.focus();
  },
};
