/** Labels with the probability of each, the likeliest first. */

import { element } from "./dom.js";
import { percent } from "./language.js";

/** Draws the shares of labels into a node; nothing where there are none. */
export function drawShares(node, probs) {
  const shares = Object.entries(probs ?? {}).sort(([, a], [, b]) => b - a);
  node.replaceChildren(...shares.map(([label, share]) => {
    const bar = element("span", { class: "fillbar" });
    bar.style.inlineSize = `${100 * share}%`;
    return element(
      "p",
      { class: "share" },
      element("span", { class: "share-label", text: label }),
      element("span", { class: "share-value", text: percent(share) }),
      element("span", { class: "track" }, bar),
    );
  }));
}
