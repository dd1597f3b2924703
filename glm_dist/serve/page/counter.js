/** How much of the model's context a text and its answer take, counted by the server. */

import { ask } from "./api.js";
import { debounced, element, find } from "./dom.js";
import { number, text } from "./language.js";
import { contextLength, model } from "./session.js";

const WAIT_MILLISECONDS = 350;

/** Keeps the bar of a panel up to date.
 * @param {HTMLElement} panel of a mode
 * @param {() => {body: object, added: number, asked: number}} measure says what `/tokenize` is
 *   asked, and how many tokens come with it and are asked for
 * @returns {() => void} to be called after each change
 */
export function countTokens(panel, measure) {
  const bar = find(".context", panel);
  const used = element("span", { class: "used" });
  const asked = element("span", { class: "asked" });
  const label = element("span", { class: "context-label" });
  bar.append(element("span", { class: "context-track", "aria-hidden": "true" }, used, asked), label);
  let controller = new AbortController();

  async function count() {
    const longest = contextLength();
    if (longest === null) return;
    const { body, added, asked: wanted } = measure();
    controller.abort();
    controller = new AbortController();
    let prompt = 0;
    try {
      const reply = body && (await ask("tokenize", { model: model().id, ...body }, controller.signal));
      prompt = (reply ? (await reply.json()).count : 0) + added;
    } catch {
      return; // the next request says what is wrong
    }
    used.style.inlineSize = share(prompt, longest);
    asked.style.inlineSize = share(Math.min(wanted, longest - prompt), longest);
    bar.dataset.over = prompt + wanted > longest;
    label.textContent = text("context", {
      prompt: number(prompt), asked: number(wanted), longest: number(longest),
    });
  }

  const later = debounced(WAIT_MILLISECONDS, count);
  for (const event of ["language", "model", "parameters"]) document.addEventListener(event, later);
  return later;
}

const share = (part, whole) => `${Math.max(0, Math.min(100, (100 * part) / whole))}%`;
