/** Which models the server has, and which one is asked. */

import { ask } from "./api.js";
import { element, find } from "./dom.js";
import { text } from "./language.js";
import { recall, remember } from "./store.js";

let models = [];
const select = find("#model");

/** The model that is asked; null until the server has been reached. */
export const model = () => models.find((one) => one.id === select.value) ?? null;

export const isBaseModel = () => model()?.kind === "base model";

/** Tokens that a text and its answer may have together. */
export const contextLength = () => model()?.max_model_len ?? null;

/** Asks for the models and offers them.
 * @throws {import("./api.js").ApiError}
 */
export async function loadModels() {
  models = (await (await ask("v1/models")).json()).data;
  const wanted = recall("model");
  select.replaceChildren(...models.map((one) => element("option", { value: one.id, text: one.id })));
  if (models.some((one) => one.id === wanted)) select.value = wanted;
  showKind();
}

/** Whether the server answers at all. */
export async function isBack() {
  try {
    await ask("health/live");
    return true;
  } catch {
    return false;
  }
}

function showKind() {
  const badge = find("#model-kind");
  badge.hidden = !isBaseModel();
  badge.textContent = text("baseModel");
  badge.title = text("baseModelHelp");
  find("#chat-base").hidden = !isBaseModel();
  document.dispatchEvent(new Event("model"));
}

select.addEventListener("change", () => {
  remember("model", select.value);
  showKind();
});
document.addEventListener("language", showKind);
