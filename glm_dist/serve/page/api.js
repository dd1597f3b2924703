/** The server's endpoints: replies, streams, and failures in one shape. */

import { events } from "./sse.js";
import { apiKey } from "./store.js";

/** A reply that is no success; status 0 says that there was none. */
export class ApiError extends Error {
  constructor(status, message, { retrySeconds = null } = {}) {
    super(message);
    this.status = status;
    this.retrySeconds = retrySeconds;
  }
}

/** Below wherever the page itself lies. */
export const urlOf = (path) => new URL(path, document.baseURI).href;

/** The reply of an endpoint: GET without a body, else POST.
 * @throws {ApiError} whatever went wrong, but for an abort.
 */
export async function ask(path, body, signal) {
  const headers = {};
  if (apiKey()) headers.authorization = `Bearer ${apiKey()}`;
  if (body) headers["content-type"] = "application/json";
  let reply;
  try {
    const method = body ? "POST" : "GET";
    reply = await fetch(urlOf(path), { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, error.message);
  }
  if (!reply.ok) throw await failureOf(reply);
  return reply;
}

/** The parts of a streamed reply.
 * @throws {ApiError} where the server reports one on the way, or breaks off.
 */
export async function* parts(reply) {
  let isComplete = false;
  try {
    for await (const data of events(reply.body)) {
      isComplete = data === "[DONE]";
      if (isComplete) break;
      const part = JSON.parse(data);
      if (part.error) throw new ApiError(500, part.error.message);
      yield part;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError(0, error.message);
  }
  if (!isComplete) throw new ApiError(0, "");
}

async function failureOf(reply) {
  let message = `${reply.status} ${reply.statusText}`;
  try {
    message = (await reply.json()).error.message;
  } catch {
    // whoever answered does not speak the protocol; the status has to do
  }
  const seconds = Number.parseInt(reply.headers.get("retry-after"), 10);
  return new ApiError(reply.status, message, { retrySeconds: Number.isNaN(seconds) ? null : seconds });
}
