/** The words of the page in English and Chinese. */

import { find, findAll } from "./dom.js";
import { recall, remember } from "./store.js";

const TEXTS = await (await fetch(new URL("texts.json", import.meta.url))).json();
const LANGUAGES = ["en", "zh"];
const preferred = navigator.language.startsWith("zh") ? "zh" : "en";
let language = LANGUAGES.includes(recall("language")) ? recall("language") : preferred;

/** A text by its key, with `{name}` replaced by the value of that name. */
export function text(key, values = {}) {
  return TEXTS[key][language].replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export function number(value, options = {}) {
  return new Intl.NumberFormat(language, options).format(value);
}

/** A probability, as exact as it is worth reading. */
export function percent(share) {
  if (share > 0 && share < 0.0005) return `<${number(0.0005, { style: "percent", maximumSignificantDigits: 1 })}`;
  return number(share, { style: "percent", maximumFractionDigits: share < 0.0995 ? 1 : 0 });
}

/** Writes all texts below a node in the language of the page. */
export function translate(root = document) {
  for (const node of findAll("[data-text]", root)) node.textContent = text(node.dataset.text);
  for (const node of findAll("[data-label]", root)) node.setAttribute("aria-label", text(node.dataset.label));
  for (const node of findAll("[data-placeholder]", root)) {
    node.setAttribute(node.isContentEditable ? "data-shown" : "placeholder", text(node.dataset.placeholder));
  }
}

/** Changes the language; who draws texts of its own listens for `language` on the document. */
export function speak(code) {
  language = code;
  remember("language", code);
  document.documentElement.lang = code === "zh" ? "zh-Hans" : code;
  const other = find("#language");
  other.lang = code === "zh" ? "en" : "zh-Hans";
  translate();
  document.dispatchEvent(new Event("language"));
}

export const nextLanguage = () => LANGUAGES[(LANGUAGES.indexOf(language) + 1) % LANGUAGES.length];
export const currentLanguage = () => language;
