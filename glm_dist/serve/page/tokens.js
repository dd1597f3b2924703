/** An answer as text and as tokens with their log-probabilities, which arrive apart. */

const BYTES = /^bytes:((?:\\x[0-9a-f]{2})+)$/;
const encoder = new TextEncoder();

/** Tokens of `/v1/completions`: {bytes, logprob, top: [{token, logprob}]} each. */
export function tokensOfCompletion(logprobs) {
  if (!logprobs) return [];
  return logprobs.tokens.map((name, place) => ({
    bytes: bytesOf(name),
    logprob: logprobs.token_logprobs[place],
    top: sorted(
      Object.entries(logprobs.top_logprobs?.[place] ?? {}).map(([token, logprob]) => ({ token, logprob })),
    ),
  }));
}

/** Tokens of chat replies and of blanks, in the same form. */
export function tokensOfChat(logprobs) {
  return (logprobs?.content ?? []).map((one) => ({
    bytes: one.bytes ?? [...encoder.encode(one.token)],
    logprob: one.logprob,
    top: sorted(one.top_logprobs),
  }));
}

function bytesOf(name) {
  const spelt = BYTES.exec(name);
  if (!spelt) return [...encoder.encode(name)];
  return spelt[1].slice(2).split("\\x").map((digits) => Number.parseInt(digits, 16));
}

const sorted = (top) => [...top].sort((a, b) => b.logprob - a.logprob);

/** The text and tokens of one answer, as they come. */
export class Answer {
  text = "";
  tokens = [];
  finishReason = null;

  add(text, tokens, finishReason) {
    this.text += text ?? "";
    this.tokens.push(...tokens);
    this.finishReason = finishReason ?? this.finishReason;
  }

  /** Natural logarithm of the probability of all its tokens. */
  get logprob() {
    return this.tokens.reduce((sum, token) => sum + token.logprob, 0);
  }

  /** The text cut where tokens begin: {text, token}, without a token where none is known.
   * A character of several tokens is shown under the first of them.
   */
  get pieces() {
    const found = [];
    let place = 0;
    for (const { text, token } of whole(this.tokens)) {
      if (place >= this.text.length) break;
      const rest = this.text.slice(place);
      const common = rest.startsWith(text) ? text : text.startsWith(rest) ? rest : "";
      if (!common) continue; // a token that has no text of its own, such as a role
      found.push({ text: common, token });
      place += common.length;
    }
    if (place < this.text.length) found.push({ text: this.text.slice(place), token: null });
    return found;
  }
}

/** Tokens put together until they are whole characters. */
function* whole(tokens) {
  let bytes = [];
  let first = null;
  for (const token of tokens) {
    first ??= token;
    bytes.push(...token.bytes);
    try {
      yield { text: new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes)), token: first };
    } catch {
      continue;
    }
    bytes = [];
    first = null;
  }
}
