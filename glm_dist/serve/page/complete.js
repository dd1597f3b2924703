/** Complete: the text goes on where it ends, in place. */

import { countTokens } from "./counter.js";
import { debounced, find } from "./dom.js";
import { Editor } from "./editor.js";
import { maxTokensOf, parametersOf } from "./parameters.js";
import { drawTokens } from "./popover.js";
import { Runner } from "./runner.js";
import { model } from "./session.js";
import { recall, remember } from "./store.js";
import { Answer, tokensOfCompletion } from "./tokens.js";

const ALTERNATIVES_PER_TOKEN = 5;
const panel = find("#complete");
const editor = new Editor(find("#complete-text"), { hasBlanks: false });
const runner = new Runner(panel);
const again = find(".again", panel);
let last = null; // the prompt of the answer that stands at the end, while it does

const count = countTokens(panel, () => ({
  body: editor.text && { prompt: editor.text }, added: 2, asked: maxTokensOf("complete"),
}));

const requestFor = (prompt) => ({
  path: "v1/completions",
  body: { model: model()?.id, prompt, ...parametersOf("complete"), logprobs: ALTERNATIVES_PER_TOKEN },
});

async function complete(prompt) {
  if (!prompt || runner.isRunning) return;
  const answer = new Answer();
  const place = editor.appendAnswer();
  last = { prompt, place };
  editor.isLocked = true;
  await runner.run(requestFor(prompt), ({ choices = [] }) => {
    for (const choice of choices) {
      answer.add(choice.text, tokensOfCompletion(choice.logprobs), choice.finish_reason);
    }
    drawTokens(place, answer);
    editor.draw();
  }, regenerate);
  editor.isLocked = false;
  if (!answer.text) place.remove();
  changed();
}

function regenerate() {
  if (!last || runner.isRunning) return;
  const { prompt, place } = last;
  place.remove();
  complete(prompt);
}

function changed() {
  if (last && (!last.place.isConnected || editor.text !== last.prompt + last.place.textContent)) last = null;
  again.disabled = last === null;
  find(".run", panel).dataset.text = last === null ? "completeRun" : "continue";
  if (!runner.isRunning) runner.draw();
  count();
  keep();
}
const keep = debounced(500, () => remember("complete", editor.text));

editor.onChange = changed;
again.addEventListener("click", regenerate);

export const completeMode = {
  id: "complete",
  runner,
  examples: ["completeExample1", "completeExample2", "completeExample3"],
  request: () => requestFor(editor.text),
  run: () => complete(editor.text),
  use: (content) => editor.write(content),
  start: () => editor.write(recall("complete", "")),
  isEmpty: () => editor.text === "",
  clear: () => {
    editor.write("");
    runner.clear();
    editor.node.focus();
  },
};
