/** One request at a time of a mode: from its button to its statistics, and how it is stopped. */

import { ask, ApiError, parts } from "./api.js";
import { element, find } from "./dom.js";
import { number, text } from "./language.js";
import { announce, hideNotice, showFailure } from "./notice.js";
import { isBack } from "./session.js";

export class Runner {
  #panel;
  #button;
  #controller = null;
  #figures = null;

  /** @param {HTMLElement} panel of a mode, with its button `.run` and its list `.stats` */
  constructor(panel) {
    this.#panel = panel;
    this.#button = find(".run", panel);
    document.addEventListener("language", () => this.draw());
  }

  get isRunning() {
    return this.#controller !== null;
  }

  /** Ends the request here, and so at the server, which frees what it held. */
  stop() {
    this.#controller?.abort();
  }

  /** Forgets the figures of the last request. */
  clear() {
    this.#figures = null;
    this.draw();
  }

  /** Asks, and hands over each part of the reply; a reply that is not streamed is one part.
   * Failures are shown, with `again` as the way to repeat.
   */
  async run({ path, body }, onPart, again) {
    this.#begin();
    const start = performance.now();
    const figures = { reasons: new Set() };
    try {
      const reply = await ask(path, body, this.#controller.signal);
      const arriving = body.stream ? parts(reply) : [await reply.json()];
      for await (const part of arriving) {
        const now = performance.now();
        if (hasContent(part)) {
          figures.first ??= now - start;
          figures.last = now - start;
        }
        if (part.usage) figures.usage = part.usage;
        for (const { finish_reason: reason } of part.choices ?? []) if (reason) figures.reasons.add(reason);
        onPart(part);
      }
    } catch (error) {
      if (error.name === "AbortError") figures.reasons.add("stopped");
      else if (error instanceof ApiError) this.#fail(error, again);
      else throw error;
    } finally {
      figures.total = performance.now() - start;
      figures.isStreamed = Boolean(body.stream);
      this.#end(figures);
    }
  }

  #begin() {
    hideNotice();
    this.#controller = new AbortController();
    this.#panel.dataset.busy = "true";
    this.#figures = null;
    this.draw();
    announce(text("generating"));
  }

  #end(figures) {
    this.#controller = null;
    delete this.#panel.dataset.busy;
    this.#figures = figures;
    this.draw();
    const tokens = figures.usage?.completion_tokens ?? 0;
    announce(text(figures.reasons.has("stopped") ? "wasStopped" : "done", { tokens: number(tokens) }));
  }

  #fail(error, again) {
    showFailure(error, { retry: again, enterKey: () => find("#open-key").click(), isBack });
  }

  /** Shows the figures of the last request, and what the button does now. */
  draw() {
    const { text: runs, stop } = this.#button.dataset;
    this.#button.textContent = text(this.isRunning ? stop : runs);
    const rows = this.#figures === null ? [] : rowsOf(this.#figures);
    find(".stats", this.#panel).replaceChildren(
      ...rows.map(([key, value]) =>
        element("div", {}, element("dt", { text: text(key) }), element("dd", { text: value }))),
    );
  }
}

const hasContent = ({ choices = [], data }) =>
  Boolean(data) || choices.some((one) => one.text || one.delta?.content || one.delta?.text || one.message || one.blanks);

function rowsOf({ first, last, total, usage, reasons, isStreamed }) {
  const seconds = (value) => text("seconds", { value: number(value / 1000, { maximumFractionDigits: 2 }) });
  const rows = [];
  if (isStreamed && first !== undefined) rows.push(["firstToken", seconds(first)]);
  rows.push(["inAll", seconds(total)]);
  const generated = usage?.completion_tokens;
  if (isStreamed && generated > 1 && last > first) {
    rows.push(["speed", number((1000 * (generated - 1)) / (last - first), { maximumFractionDigits: 0 })]);
  }
  if (usage) {
    rows.push(["promptTokens", number(usage.prompt_tokens)]);
    if (generated) rows.push(["answerTokens", number(generated)]);
  }
  const why = [...reasons].map((reason) => text(`finish_${reason}`));
  if (why.length) rows.push(["finish", why.join(", ")]);
  return rows;
}
