/** Shows what else could have stood where a token stands, on hover, on focus and at the caret. */

import { element, find } from "./dom.js";
import { percent, text } from "./language.js";

const MARGIN = 8;
const box = find("#popover");
const tokenOf = new WeakMap();

/** How likely a token was, as one of five steps that the style sheet draws. */
const step = (logprob) => [0.05, 0.2, 0.5, 0.8].filter((bound) => Math.exp(logprob) >= bound).length;

/** Draws an answer token by token.
 * @param {import("./tokens.js").Answer} answer
 */
export function drawTokens(node, answer) {
  node.replaceChildren(...answer.pieces.map(({ text: shown, token }) => {
    if (!token) return document.createTextNode(shown);
    const span = element("span", { class: "token", text: shown, "data-step": step(token.logprob) });
    tokenOf.set(span, token);
    return span;
  }));
}

/** Makes the tokens of a text that is not edited reachable: Tab enters, arrows move. */
export function makeReachable(node) {
  const spans = () => [...node.querySelectorAll(".token")];
  const first = spans()[0];
  if (first) first.tabIndex = 0;
  node.onkeydown = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = by && spans()[spans().indexOf(document.activeElement) + by];
    if (!next) return;
    event.preventDefault();
    for (const span of spans()) span.tabIndex = span === next ? 0 : -1;
    next.focus();
  };
}

export function hidePopover() {
  find("[aria-describedby=popover]")?.removeAttribute("aria-describedby");
  box.hidden = true;
}

function show(span) {
  const { logprob, top } = tokenOf.get(span);
  hidePopover();
  const taken = span.textContent;
  const rows = top.map((one) => row(one.token, one.logprob, one.logprob === logprob));
  if (!top.some((one) => one.logprob === logprob)) rows.push(row(taken, logprob, true));
  box.replaceChildren(element("p", { class: "popover-title", text: text("likelyHere") }), ...rows);
  box.hidden = false;
  span.setAttribute("aria-describedby", "popover");
  place(span);
}

function row(token, logprob, isTaken) {
  const bar = element("span", { class: "track" }, element("span", { class: "fillbar" }));
  bar.firstChild.style.inlineSize = `${100 * Math.exp(logprob)}%`;
  return element(
    "span",
    { class: isTaken ? "chance taken" : "chance" },
    element("span", { class: "chance-token", text: visible(token) }),
    bar,
    element("span", { class: "chance-share", text: percent(Math.exp(logprob)) }),
  );
}

/** A token whose spaces and line ends can be seen. */
const visible = (token) => token.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "∅";

function place(span) {
  const around = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const { width, height } = box.getBoundingClientRect();
  const room = document.documentElement.clientWidth - width - MARGIN;
  const fitsBelow = around.bottom + height + MARGIN < window.innerHeight;
  box.style.left = `${Math.max(MARGIN, Math.min(around.left, room)) + window.scrollX}px`;
  box.style.top = `${(fitsBelow ? around.bottom + 6 : around.top - height - 6) + window.scrollY}px`;
}

const tokenAt = (node) => {
  const around = node?.nodeType === Node.TEXT_NODE ? node.parentElement : node;
  const span = around?.closest?.(".token");
  return span && tokenOf.has(span) ? span : null;
};

document.addEventListener("pointerover", ({ target }) => {
  const span = tokenAt(target);
  if (span) show(span);
  else if (!box.hidden && !box.contains(target)) hidePopover();
});
document.addEventListener("focusin", ({ target }) => tokenAt(target) && show(tokenAt(target)));
document.addEventListener("focusout", hidePopover);
document.addEventListener("keyup", ({ key }) => {
  if (!key.startsWith("Arrow") || !document.activeElement?.isContentEditable) return;
  const span = tokenAt(document.getSelection().focusNode);
  if (span) show(span);
  else hidePopover();
});
