/** The exact request of a mode as a command and as a program. */

import { urlOf } from "./api.js";
import { find, findAll } from "./dom.js";
import { text } from "./language.js";
import { announce } from "./notice.js";
import { apiKey } from "./store.js";

const NATIVE = {
  "v1/completions": "client.completions.create",
  "v1/chat/completions": "client.chat.completions.create",
};
/** Parameters of ours that OpenAI's client takes as `extra_body` only. */
const EXTRA = new Set(["top_k", "min_p", "repetition_penalty"]);
const COPIED_SECONDS = 1.5;

/** A command for a shell; the key is named, never written down. */
export function asCurl({ path, body }) {
  const lines = [`curl ${urlOf(path)}`, "-H 'content-type: application/json'"];
  if (apiKey()) lines.push('-H "authorization: Bearer $GLM_API_KEY"');
  if (body.stream) lines[0] += " --no-buffer";
  lines.push(`-d '${JSON.stringify(body, null, 2).replaceAll("'", String.raw`'\''`)}'`);
  return lines.join(" \\\n  ");
}

/** A program: through OpenAI's client where it has the endpoint, else plain HTTP. */
export function asPython(request) {
  return request.path in NATIVE ? withOpenAI(request) : withHttpx(request);
}

function withOpenAI({ path, body }) {
  const own = Object.entries(body).filter(([key]) => !EXTRA.has(key));
  const extra = Object.entries(body).filter(([key]) => EXTRA.has(key));
  const given = own.map(([key, value]) => `    ${key}=${literal(value, 4)},`);
  if (extra.length) given.push(`    extra_body=${literal(Object.fromEntries(extra), 4)},`);
  const isChat = path.endsWith("chat/completions");
  const whole = isChat ? "message.content" : "text";
  const piece = isChat ? "delta.content or \"\"" : "text";
  return [
    ...(apiKey() ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(urlOf("v1"))}, api_key=${apiKey() ? 'os.environ["GLM_API_KEY"]' : '"none"'})`,
    `reply = ${NATIVE[path]}(`,
    ...given,
    ")",
    ...(body.stream
      ? ["for part in reply:", "    for choice in part.choices:", `        print(choice.${piece}, end="", flush=True)`]
      : [`print(reply.choices[0].${whole})`]),
    "",
  ].join("\n");
}

function withHttpx({ path, body }) {
  const headers = apiKey() ? ['headers = {"authorization": f"Bearer {os.environ[\'GLM_API_KEY\']}"}'] : [];
  const given = `${literal(urlOf(path))}, json=body${apiKey() ? ", headers=headers" : ""}, timeout=None`;
  return [
    ...(apiKey() ? ["import os", ""] : []),
    "import httpx",
    "",
    `body = ${literal(body)}`,
    ...headers,
    ...(body.stream
      ? [`with httpx.stream("POST", ${given}) as reply:`, "    for line in reply.iter_lines():", "        print(line)"]
      : [`print(httpx.post(${given}).json())`]),
    "",
  ].join("\n");
}

/** A value as Python writes it. */
function literal(value, indent = 0) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const inner = indent + 4;
  const items = Array.isArray(value)
    ? value.map((one) => literal(one, inner))
    : Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${literal(one, inner)}`);
  if (!items.length) return open + close;
  return `${open}\n${items.map((item) => `${" ".repeat(inner)}${item},\n`).join("")}${" ".repeat(indent)}${close}`;
}

/** Opens the dialog with a request. */
export function showCode(request) {
  find("#code-curl").textContent = asCurl(request);
  find("#code-python").textContent = asPython(request);
  find("#code-dialog").showModal();
}

async function copy(node) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(node.textContent);
    return;
  }
  // Browsers have a clipboard on this machine and behind https only; elsewhere this old way works.
  document.getSelection().selectAllChildren(node);
  document.execCommand("copy");
}

for (const button of findAll("button.copy")) {
  button.addEventListener("click", async () => {
    await copy(find(`#${button.dataset.copies}`));
    button.textContent = text("copied");
    announce(text("copied"));
    setTimeout(() => { button.textContent = text("copy"); }, COPIED_SECONDS * 1000);
  });
}
