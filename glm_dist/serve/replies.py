"""From the engine's outputs to the bodies and events that OpenAI's clients read."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from glm_dist.inference import Alternative, Delta, OptionScore, Usage
from glm_dist.inference.detokenize import TextStream, TokenTexts
from glm_dist.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0
"""JSON has no infinity."""
DONE = "data: [DONE]\n\n"


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def usage_of(parts: Sequence[Usage | None]) -> dict[str, Any]:
    """Tokens of all parts of a reply."""
    known = [part for part in parts if part is not None]
    prompt = sum(part.prompt_tokens for part in known)
    completion = sum(part.completion_tokens for part in known)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(part.cached_tokens for part in known)},
    }


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The usage of two replies together."""
    return {
        name: added(value, other[name]) if isinstance(value, dict) else value + other[name]
        for name, value in one.items()
    }


@dataclass(frozen=True)
class Frame:
    """What all parts of one reply share."""

    kind: str
    """`object` of the reply, or of each of its events."""
    model: str
    prefix: str
    created: int = field(default_factory=lambda: int(time.time()))
    key: str = field(default_factory=lambda: uuid4().hex)

    def of(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """A reply, or a part of one, with these choices."""
        return {
            "id": f"{self.prefix}-{self.key}",
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


@dataclass
class Answer:
    """One choice, put together from its deltas."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[tuple[Alternative, ...]] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, delta: Delta) -> None:
        """Take in what came."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        self.alternatives += delta.alternatives
        self.finish_reason = delta.finish_reason or self.finish_reason


class Offsets:
    """Where the tokens of one answer begin in its text, in characters, however they come."""

    def __init__(self, texts: TokenTexts, names: "TokenNames") -> None:
        self._stream, self._names = TextStream(texts), names
        self._length = 0

    def take(self, tokens: Sequence[int]) -> list[int]:
        """The beginning of each of these, which follow those before."""
        found = []
        for token in tokens:
            found.append(self._length)
            text = self._names.role(token) or self._stream.push(token)
            self._length += len(text)
        return found


class TokenNames:
    """How tokens are written in log-probabilities."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._texts = tokenizer, TokenTexts(tokenizer)
        self._special = set(tokenizer.special_ids.tolist())

    def offsets(self) -> Offsets:
        """Counts the characters of an answer, or of an echoed prompt and its answer."""
        return Offsets(self._texts, self)

    def completion_logprobs(
        self, part: "Answer | Delta | Echo", num_shown: int, offsets: Offsets
    ) -> dict[str, Any]:
        """The lists of `/v1/completions`, for an answer or a part of one."""
        values = [None if value is None else finite(value) for value in part.logprobs]
        tops = list(part.alternatives) or [()] * len(values)
        return {
            "tokens": [self.name(token) for token in part.tokens],
            "token_logprobs": values,
            "top_logprobs": [
                None if value is None else self._top(token, value, top[:num_shown])
                for token, value, top in zip(part.tokens, values, tops, strict=True)
            ],
            "text_offset": offsets.take(part.tokens),
        }

    def chat_logprobs(self, part: "Answer | Delta") -> dict[str, Any]:
        """`logprobs.content` of a chat reply."""
        tops = list(part.alternatives) or [()] * len(part.tokens)
        content = [
            {
                **self._entry(token, value),
                "top_logprobs": [self._entry(one.token, one.logprob) for one in top],
            }
            for token, value, top in zip(part.tokens, part.logprobs, tops, strict=True)
        ]
        return {"content": content, "refusal": None}

    def name(self, token: int) -> str:
        """The text of a token; of one that is no whole character its bytes."""
        content = self._bytes(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def role(self, token: int) -> str:
        """The name of a token that has a role; "" of any other."""
        return self._tokenizer.piece(token) if token in self._special else ""

    def _bytes(self, token: int) -> bytes:
        return self.role(token).encode() or self._texts.of(token)

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        content = self._bytes(token)
        return {"token": self.name(token), "logprob": finite(logprob), "bytes": list(content)}

    def _top(self, token: int, value: float, top: Sequence[Alternative]) -> dict[str, float]:
        """The likeliest ones and the one taken; two ids of one name keep both."""
        pairs = [(one.token, finite(one.logprob)) for one in top]
        if token not in {one.token for one in top}:
            pairs.append((token, value))
        found: dict[str, float] = {}
        for one, logprob in pairs:
            name = self.name(one)
            found[name if name not in found else f"{name}<{one}>"] = logprob
        return found


@dataclass(frozen=True)
class Echo:
    """The prompt's own tokens with their log-probabilities; the first has none."""

    tokens: list[int]
    logprobs: list[float | None]
    alternatives: list[tuple[Alternative, ...]]

    @classmethod
    def of(cls, tokens: Sequence[int], score: OptionScore) -> "Echo":
        """What a score says of a prompt."""
        return cls(list(tokens), [None, *score.logprobs[1:]], list(score.alternatives))


def joined(parts: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Lists of log-probabilities, one after the other."""
    return {name: [one for part in parts for one in part[name]] for name in parts[0]}


def finite(value: float) -> float:
    """A log-probability that JSON can write."""
    return value if math.isfinite(value) else LEAST_LOGPROB
