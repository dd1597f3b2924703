/** What the page has to say: one notice to be seen, and a line for screen readers. */

import { find } from "./dom.js";
import { text } from "./language.js";

const POLL_SECONDS = 3;
const box = find("#notice");
const action = find("#notice-action");
let timer = null;
let shown = null;

/** Says something to screen readers without moving anything. */
export function announce(message) {
  find("#status").textContent = message;
}

export function hideNotice() {
  clearInterval(timer);
  shown = null;
  box.hidden = true;
}

/** Shows a failure in the server's own words, and what can be done about it.
 * @param {import("./api.js").ApiError} error
 * @param {{retry: Function, enterKey: Function, isBack: Function}} ways out; `isBack` asks
 *   whether the server can be reached again.
 */
export function showFailure(error, ways) {
  hideNotice();
  shown = { error, ways };
  box.dataset.kind = kindOf(error);
  find("#notice-text").textContent = sentence(error);
  box.hidden = false;
  action.hidden = false;
  action.disabled = false;
  if (error.status === 401) offer("enterKey", ways.enterKey);
  else if (error.retrySeconds !== null) countDown(error.retrySeconds, ways.retry);
  else if (error.status === 0) waitFor(ways);
  else action.hidden = true;
}

function kindOf({ status }) {
  return { 0: "offline", 401: "key", 429: "busy", 503: "busy" }[status] ?? "error";
}

function sentence(error) {
  if (error.status === 0) return text("offline");
  if (error.status === 401) return text("keyWanted");
  if (error.status === 429) return `${text("busy")} ${error.message}`;
  return error.message;
}

function offer(key, call) {
  action.textContent = text(key);
  action.onclick = () => {
    hideNotice();
    call();
  };
}

function countDown(seconds, retry) {
  let left = seconds;
  const tick = () => {
    action.disabled = left > 0;
    if (left > 0) {
      action.textContent = text("retryAfter", { seconds: left });
    } else {
      clearInterval(timer);
      offer("retry", retry);
    }
    left -= 1;
  };
  tick();
  timer = setInterval(tick, 1000);
}

function waitFor({ isBack, retry }) {
  offer("retry", retry);
  timer = setInterval(async () => {
    if (!(await isBack()) || box.dataset.kind !== "offline") return;
    hideNotice();
    announce(text("online"));
    document.dispatchEvent(new Event("online-again"));
  }, POLL_SECONDS * 1000);
}

find("#notice-close").addEventListener("click", hideNotice);
document.addEventListener("language", () => shown && showFailure(shown.error, shown.ways));
