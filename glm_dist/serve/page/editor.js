/** A text that is written in place, plain but for marks: blanks, and answers of the model. */

import { element, findAll } from "./dom.js";
import { text } from "./language.js";

/** Masks of a GLM by the length that they ask for. */
export const MASKS = ["[MASK]", "[sMASK]", "[gMASK]"];
const WRITTEN_MASK = /\[[sg]?MASK\]/;

export class Editor {
  #node;
  #hasBlanks;
  #blanks = new Map();
  #nextId = 1;

  /** Called after each change, by hand or not. */
  onChange = () => {};
  /** Called when a blank is clicked, or Enter is pressed on it. */
  onPick = () => {};
  isLocked = false;

  constructor(node, { hasBlanks = true } = {}) {
    this.#node = node;
    this.#hasBlanks = hasBlanks;
    node.contentEditable = "plaintext-only";
    if (node.contentEditable !== "plaintext-only") node.contentEditable = "true";
    node.addEventListener("beforeinput", (event) => this.#before(event));
    node.addEventListener("input", (event) => event.isComposing || this.#changed());
    node.addEventListener("compositionend", () => this.#changed());
    node.addEventListener("paste", (event) => this.#paste(event));
    node.addEventListener("click", ({ target }) => this.#pick(target));
    node.addEventListener("keydown", (event) => {
      if (event.target === node || !["Enter", " "].includes(event.key)) return;
      event.preventDefault();
      this.#pick(event.target);
    });
    document.addEventListener("language", () => this.draw());
  }

  get node() {
    return this.#node;
  }

  /** Text and blanks in their order: strings and blank objects. */
  get pieces() {
    const found = [];
    const read = (node) => {
      if (this.#blankOf(node)) found.push(this.#blankOf(node));
      else if (node.nodeType === Node.TEXT_NODE) found.push(node.nodeValue);
      else if (node.nodeName === "BR") found.push("\n");
      else {
        if (node !== this.#node && node.nodeName === "DIV" && found.length) found.push("\n");
        node.childNodes.forEach(read);
      }
    };
    read(this.#node);
    return joined(found);
  }

  /** Blanks in their order. */
  get blanks() {
    return this.pieces.filter((piece) => typeof piece !== "string");
  }

  /** The text, each blank as it stands. */
  get text() {
    return this.pieces.map((piece) => (typeof piece === "string" ? piece : piece.fill)).join("");
  }

  /** Puts in a text; masks in it become blanks. */
  write(content) {
    this.#blanks.clear();
    this.#node.replaceChildren(...this.#parsed(content));
    this.#changed();
  }

  /** Makes a blank of what is selected, or an empty one at the caret. */
  makeBlank() {
    const range = this.#range();
    const chosen = this.#textOf(range.cloneContents());
    const [, before, original, after] = /^(\s*)([^]*?)(\s*)$/.exec(chosen);
    const blank = this.#newBlank("[MASK]", original);
    range.deleteContents();
    range.insertNode(fragmentOf(before, blank.node, after));
    this.#caretAfter(blank.node);
    this.#changed();
    return blank;
  }

  /** Makes text of a blank again. */
  dissolve(blank, content) {
    blank.node.replaceWith(document.createTextNode(content));
    this.#node.normalize();
    this.#changed();
  }

  /** A node at the end of the text into which an answer is drawn. */
  appendAnswer() {
    const answer = element("span", { class: "answer" });
    this.#node.append(answer);
    return answer;
  }

  /** Makes plain text of all answers. */
  settle() {
    const place = this.#caretOffset();
    for (const answer of findAll(".answer", this.#node)) answer.replaceWith(answer.textContent);
    this.#node.normalize();
    if (place !== null) this.#caretTo(place);
  }

  /** Numbers the blanks and shows what is in them. */
  draw() {
    this.blanks.forEach((blank, place) => {
      blank.number = place + 1;
      const [mark, fill] = blank.node.children;
      mark.textContent = blank.number;
      fill.textContent = blank.fill;
      blank.node.dataset.state = blank.state;
      blank.node.dataset.mask = blank.mask;
      const key = blank.fill ? "blankFilled" : "blankEmpty";
      blank.node.setAttribute("aria-label", text(key, { number: blank.number, fill: blank.fill }));
    });
    this.#node.classList.toggle("is-empty", this.#node.textContent === "");
  }

  /** Whether words in this text are selected. */
  get hasSelection() {
    const selection = document.getSelection();
    return !selection.isCollapsed && this.#node.contains(selection.anchorNode)
      && this.#node.contains(selection.focusNode) && selection.toString().trim() !== "";
  }

  #before(event) {
    if (this.isLocked) event.preventDefault();
    else if (document.getSelection().anchorNode?.parentElement?.closest(".answer")) this.settle();
  }

  #changed() {
    if (this.#hasBlanks && WRITTEN_MASK.test(this.#textNodes().join(""))) this.#convertMasks();
    this.draw();
    this.onChange();
  }

  #textNodes() {
    return [...this.#node.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.nodeValue);
  }

  /** Makes blanks of masks that were written or pasted as text. */
  #convertMasks() {
    this.#node.normalize();
    for (const node of [...this.#node.childNodes]) {
      if (node.nodeType !== Node.TEXT_NODE || !WRITTEN_MASK.test(node.nodeValue)) continue;
      const made = this.#parsed(node.nodeValue);
      const last = made.findLast((one) => one.nodeType !== Node.TEXT_NODE);
      node.replaceWith(...made);
      if (document.activeElement === this.#node) this.#caretAfter(last);
    }
  }

  #parsed(content) {
    if (!this.#hasBlanks) return [document.createTextNode(content)];
    return content.split(/(\[[sg]?MASK\])/).filter(Boolean).map((piece) =>
      MASKS.includes(piece) ? this.#newBlank(piece).node : document.createTextNode(piece));
  }

  #newBlank(mask, original = "") {
    const id = String(this.#nextId++);
    const node = element(
      "span",
      { class: "blank", contenteditable: "false", role: "button", tabindex: "0", "data-id": id },
      element("span", { class: "mark", "aria-hidden": "true" }),
      element("span", { class: "fill" }),
    );
    const blank = { id, node, mask, original, fill: "", state: "empty", alternatives: [], number: 0 };
    this.#blanks.set(id, blank);
    return blank;
  }

  #blankOf(node) {
    return node?.dataset?.id === undefined ? null : this.#blanks.get(node.dataset.id) ?? null;
  }

  #pick(target) {
    const blank = this.#blankOf(target.closest?.(".blank"));
    if (blank) this.onPick(blank);
  }

  #paste(event) {
    event.preventDefault();
    document.execCommand("insertText", false, event.clipboardData.getData("text/plain"));
  }

  /** The text of a part of the document, what stands in blanks included, their numbers not. */
  #textOf(fragment) {
    for (const mark of findAll(".mark", fragment)) mark.remove();
    return fragment.textContent;
  }

  /** What is selected, or the end of the text where nothing in it is. */
  #range() {
    const selection = document.getSelection();
    if (selection.rangeCount && this.#node.contains(selection.getRangeAt(0).commonAncestorContainer)) {
      return selection.getRangeAt(0);
    }
    const range = document.createRange();
    range.selectNodeContents(this.#node);
    range.collapse(false);
    return range;
  }

  #caretAfter(node) {
    const range = document.createRange();
    range.setStartAfter(node);
    document.getSelection().removeAllRanges();
    document.getSelection().addRange(range);
  }

  /** Characters before the caret; null where it is elsewhere. */
  #caretOffset() {
    const selection = document.getSelection();
    if (!selection.rangeCount || !this.#node.contains(selection.focusNode)) return null;
    const range = document.createRange();
    range.selectNodeContents(this.#node);
    range.setEnd(selection.focusNode, selection.focusOffset);
    return range.toString().length;
  }

  #caretTo(offset) {
    const walker = document.createTreeWalker(this.#node, NodeFilter.SHOW_TEXT);
    let left = offset;
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      if (left <= node.length) {
        document.getSelection().collapse(node, left);
        return;
      }
      left -= node.length;
    }
  }
}

function fragmentOf(...parts) {
  const fragment = document.createDocumentFragment();
  fragment.append(...parts.filter((part) => part !== ""));
  return fragment;
}

/** Pieces with texts that follow each other made one. */
function joined(pieces) {
  const found = [];
  for (const piece of pieces) {
    if (typeof piece === "string" && typeof found.at(-1) === "string") found.push(found.pop() + piece);
    else if (piece !== "") found.push(piece);
  }
  return found;
}
