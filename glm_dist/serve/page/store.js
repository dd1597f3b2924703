/** What outlives the page: preferences in this browser, the API key in this tab alone. */

function storage(kind) {
  try {
    return window[kind];
  } catch {
    return null; // the browser forbids it; the page works without
  }
}

const PREFIX = "glm_dist.";

/** A preference, or what is given where there is none. */
export function recall(name, otherwise) {
  try {
    return JSON.parse(storage("localStorage").getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function remember(name, value) {
  try {
    storage("localStorage").setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // forgotten with the page
  }
}

let unstoredKey = "";

export function apiKey() {
  return storage("sessionStorage")?.getItem(`${PREFIX}key`) ?? unstoredKey;
}

export function keepApiKey(key) {
  unstoredKey = key;
  if (key) storage("sessionStorage")?.setItem(`${PREFIX}key`, key);
  else storage("sessionStorage")?.removeItem(`${PREFIX}key`);
}
