/** Puts the page together: modes and their tabs, keys, language, theme, and the first look at the server. */

import { ApiError } from "./api.js";
import { chatMode } from "./chat.js";
import { classifyMode } from "./classify.js";
import { showCode } from "./code.js";
import { completeMode } from "./complete.js";
import { element, find, findAll } from "./dom.js";
import { fillMode } from "./fill.js";
import { currentLanguage, nextLanguage, speak, text } from "./language.js";
import { hideNotice, showFailure } from "./notice.js";
import { showParameters } from "./parameters.js";
import { hidePopover } from "./popover.js";
import { isBack, isBaseModel, loadModels, model } from "./session.js";
import { apiKey, keepApiKey, recall, remember } from "./store.js";
import { taskMode } from "./task.js";

const NARROW = matchMedia("(max-width: 60rem)");
const modes = [fillMode, completeMode, chatMode, classifyMode, taskMode];
let mode = fillMode;

function show(next) {
  mode = next;
  for (const { id } of modes) {
    const isShown = id === mode.id;
    find(`#${id}`).hidden = !isShown;
    const tab = find(`#tab-${id}`);
    tab.setAttribute("aria-selected", isShown);
    tab.tabIndex = isShown ? 0 : -1;
  }
  hidePopover();
  showParameters(mode.id);
  document.dispatchEvent(new Event("parameters"));
}

const isThere = (one) => one.isThere?.() ?? true;

/** The mode that the address names. */
const addressed = () => modes.find((one) => `#${one.id}` === location.hash && isThere(one));

/** What the model can do best. */
function bestMode() {
  if (taskMode.isThere()) return model().task.kind === "dialogue" ? chatMode : taskMode;
  return isBaseModel() ? fillMode : chatMode;
}

async function connect() {
  document.body.dataset.state = "loading";
  try {
    await loadModels();
    document.body.dataset.state = "ready";
    show(addressed() ?? bestMode());
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    document.body.dataset.state = "unconnected";
    showFailure(error, { retry: connect, enterKey: openKey, isBack });
  }
}

function bindTabs() {
  const tabOf = ({ id }) => find(`#tab-${id}`);
  for (const one of modes) {
    tabOf(one).addEventListener("click", () => { location.hash = one.id; });
    tabOf(one).addEventListener("keydown", ({ key }) => {
      const there = modes.filter(isThere);
      const place = there.indexOf(one);
      const target = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: -1 }[key];
      if (target === undefined) return;
      const next = there.at(target % there.length);
      location.hash = next.id;
      tabOf(next).focus();
    });
  }
  addEventListener("hashchange", () => addressed() && show(addressed()));
}

function bindPanels() {
  for (const one of modes) {
    const panel = find(`#${one.id}`);
    find(".run", panel).addEventListener("click", () => (one.runner.isRunning ? one.runner.stop() : one.run()));
    find(".clear", panel).addEventListener("click", () => {
      one.runner.stop();
      one.clear();
    });
    find(".code", panel).addEventListener("click", () => showCode(one.request()));
    one.start();
  }
}

function drawExamples() {
  for (const one of modes) {
    const buttons = one.examples.map((key) => element("button", {
      class: "example", type: "button", lang: currentLanguage() === "zh" ? "zh-Hans" : "en",
      text: text(key).split("\n")[0].replaceAll(/\[[sg]?MASK\]/g, "___"),
      on: { click: () => one.runner.isRunning || one.use(text(key)) },
    }));
    const label = element("span", { text: text("examples") });
    find(".examples", find(`#${one.id}`)).replaceChildren(...(buttons.length ? [label, ...buttons] : []));
  }
}

function bindKeyboard() {
  addEventListener("keydown", (event) => {
    const isCommand = event.ctrlKey || event.metaKey;
    if (isCommand && event.key === "Enter") {
      event.preventDefault();
      if (!mode.runner.isRunning) mode.run();
    } else if (isCommand && event.key === "b" && mode.makeBlank) {
      event.preventDefault();
      mode.makeBlank();
    } else if (event.key === "Escape" && !find("dialog[open]")) {
      hidePopover();
      mode.runner.stop();
    }
  });
}

function bindLook() {
  const theme = find("#theme");
  const apply = () => { document.documentElement.dataset.theme = theme.value; };
  theme.value = recall("theme", "system");
  theme.addEventListener("change", () => {
    remember("theme", theme.value);
    apply();
  });
  apply();
  find("#language").addEventListener("click", () => speak(nextLanguage()));
  document.addEventListener("language", drawExamples);
  const fold = () => { find("#parameters").open = !NARROW.matches; };
  NARROW.addEventListener("change", fold);
  fold();
}

function openKey() {
  find("#key-value").value = apiKey();
  find("#key-dialog").showModal();
}

function bindKey() {
  const dialog = find("#key-dialog");
  find("#open-key").addEventListener("click", openKey);
  dialog.addEventListener("close", () => {
    if (!dialog.returnValue) return;
    keepApiKey(dialog.returnValue === "keep" ? find("#key-value").value.trim() : "");
    find("#key-value").value = "";
    dialog.returnValue = "";
    hideNotice();
    connect();
  });
}

bindTabs();
bindPanels();
bindKeyboard();
bindLook();
bindKey();
speak(currentLanguage());
show(addressed() ?? fillMode);
document.addEventListener("online-again", connect);
document.addEventListener("model", () => isThere(mode) || show(bestMode()));
connect();
