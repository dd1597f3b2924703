/** A card for each blank: what could stand in it, how likely that is, and what to do with it. */

import { element, find } from "./dom.js";
import { MASKS } from "./editor.js";
import { percent, text } from "./language.js";
import { drawTokens, makeReachable } from "./popover.js";

const MASK_TEXTS = ["maskWords", "maskSentence", "maskLong"];

export class BlankCards {
  #node;
  #editor;
  #ways;

  /** @param {{regenerate: Function, isBusy: () => boolean}} ways that lead out of a card */
  constructor(node, editor, ways) {
    this.#node = node;
    this.#editor = editor;
    this.#ways = ways;
    document.addEventListener("language", () => this.draw());
  }

  /** Draws all cards; the focus stays where it was. */
  draw() {
    const focused = document.activeElement?.dataset.focus;
    this.#node.replaceChildren(...this.#editor.blanks.map((blank) => this.#card(blank)));
    if (focused) find(`[data-focus="${focused}"]`, this.#node)?.focus();
  }

  /** Moves the focus to the card of a blank. */
  focus(blank) {
    const card = find(`[data-card="${blank.id}"]`, this.#node);
    card.scrollIntoView({ block: "nearest" });
    (find("input:checked", card) ?? find("button, select", card)).focus();
  }

  #card(blank) {
    const card = element(
      "section",
      { class: "card", "data-card": blank.id, "data-state": blank.state, "aria-label": text("blankNumber", blank) },
      element("header", {}, element("span", { class: "mark", text: blank.number }), this.#maskSelect(blank)),
    );
    if (blank.alternatives.length) card.append(this.#choices(blank));
    else card.append(element("p", { class: "hint", text: text("notFilled") }));
    if (blank.original) card.append(element("p", { class: "hint", text: text("was", blank) }));
    const shown = blank.alternatives.find((answer) => answer.text === blank.fill);
    if (shown?.tokens.length && blank.state !== "filling") {
      const tokens = element("p", { class: "tokens", role: "group", "aria-label": text("tokens") });
      drawTokens(tokens, shown);
      makeReachable(tokens);
      card.append(tokens);
    }
    card.append(this.#actions(blank));
    return card;
  }

  #maskSelect(blank) {
    const options = MASKS.map((mask, place) => element("option", { value: mask, text: text(MASK_TEXTS[place]) }));
    const select = element("select", { "aria-label": text("maskKind"), "data-focus": `mask-${blank.id}` }, ...options);
    select.value = blank.mask;
    select.addEventListener("change", () => {
      blank.mask = select.value;
      this.#editor.draw();
      this.#editor.onChange();
    });
    return select;
  }

  #choices(blank) {
    const most = Math.max(...blank.alternatives.map((answer) => answer.logprob));
    return element(
      "fieldset",
      { class: "choices" },
      element("legend", { class: "visually-hidden", text: text("alternatives", blank) }),
      ...blank.alternatives.map((answer, place) => this.#choice(blank, answer, place, most)),
    );
  }

  #choice(blank, answer, place, most) {
    const input = element("input", {
      type: "radio", name: `blank-${blank.id}`, "data-focus": `choice-${blank.id}-${place}`,
    });
    input.checked = answer.text === blank.fill && blank.state !== "filling";
    input.disabled = blank.state === "filling";
    input.addEventListener("change", () => {
      Object.assign(blank, { fill: answer.text, state: "filled" });
      this.#editor.draw();
      this.#editor.onChange();
    });
    const isKnown = answer.finishReason !== null && answer.tokens.length > 0;
    const bar = element("span", { class: "fillbar" });
    if (isKnown) bar.style.inlineSize = `${100 * Math.exp(answer.logprob - most)}%`;
    return element(
      "label",
      { class: "choice" },
      input,
      element("span", { class: "choice-text", text: answer.text.trim() || (isKnown ? text("nothing") : "…") }),
      element("span", { class: "choice-share", text: isKnown ? percent(Math.exp(answer.logprob)) : "" }),
      element("span", { class: "track" }, bar),
    );
  }

  #actions(blank) {
    const isAccepted = blank.state === "accepted";
    const accept = () => {
      blank.state = isAccepted ? "filled" : "accepted";
      this.#editor.draw();
      this.#editor.onChange();
    };
    const dissolve = () => this.#editor.dissolve(blank, blank.original || blank.fill);
    return element(
      "div",
      { class: "actions" },
      this.#action(blank, isAccepted ? "reopen" : "accept", accept, !blank.fill),
      this.#action(blank, "regenerate", () => this.#ways.regenerate(blank), isAccepted),
      this.#action(blank, "toText", dissolve, false),
    );
  }

  #action(blank, key, call, isOff) {
    const button = element("button", {
      class: "quiet", type: "button", text: text(key), on: { click: call },
      "data-focus": `${key === "reopen" ? "accept" : key}-${blank.id}`,
    });
    button.disabled = isOff || this.#ways.isBusy();
    return button;
  }
}
