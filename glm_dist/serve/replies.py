"""From the engine's outputs to the bodies and events that OpenAI's clients read."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from glm_dist.inference import Alternative, Delta, OptionScore, Usage
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


@dataclass(frozen=True)
class Frame:
    """What all parts of one reply share."""

    kind: str
    """`object` of the whole reply."""
    model: str
    prefix: str
    created: int = field(default_factory=lambda: int(time.time()))
    key: str = field(default_factory=lambda: uuid4().hex)

    def of(self, choices: list[dict[str, Any]], kind: str | None = None) -> dict[str, Any]:
        """A reply, or a part of one, with these choices."""
        return {
            "id": f"{self.prefix}-{self.key}",
            "object": kind or self.kind,
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


class TokenNames:
    """How tokens are written in log-probabilities."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.special_ids.tolist())

    def completion_logprobs(
        self, answer: Answer, num_shown: int, echoed: "Echo | None" = None
    ) -> dict[str, Any]:
        """The lists of `/v1/completions`; offsets count characters of the text returned."""
        tokens = [*(echoed.tokens if echoed else []), *answer.tokens]
        values: list[float | None] = [
            *(echoed.logprobs if echoed else []),
            *map(_finite, answer.logprobs),
        ]
        tops = [*(echoed.tops if echoed else []), *answer.alternatives]
        if len(tops) < len(tokens):
            tops += [()] * (len(tokens) - len(tops))
        return {
            "tokens": [self.name(token) for token in tokens],
            "token_logprobs": values,
            "top_logprobs": [
                None if value is None else self._top(token, value, top, num_shown)
                for token, value, top in zip(tokens, values, tops, strict=True)
            ],
            "text_offset": self._offsets(tokens),
        }

    def chat_logprobs(self, tokens: Sequence[int], delta: Delta | Answer) -> dict[str, Any]:
        """`logprobs.content` of a chat reply."""
        tops = list(delta.alternatives) or [()] * len(tokens)
        content = [
            {
                **self._entry(token, value),
                "top_logprobs": [self._entry(one.token, one.logprob) for one in top],
            }
            for token, value, top in zip(tokens, delta.logprobs, tops, strict=True)
        ]
        return {"content": content, "refusal": None}

    def name(self, token: int) -> str:
        """The text of a token; of one that is no whole character its bytes."""
        content = self._bytes(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def _bytes(self, token: int) -> bytes:
        if token in self._special:
            return self._tokenizer.piece(token).encode()
        return self._tokenizer.token_bytes(token)

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        content = self._bytes(token)
        return {"token": self.name(token), "logprob": _finite(logprob), "bytes": list(content)}

    def _top(
        self, token: int, value: float, top: Sequence[Alternative], num_shown: int
    ) -> dict[str, float]:
        """The likeliest ones and the one taken; two ids of one name keep both."""
        found: dict[str, float] = {}
        for one in top[:num_shown]:
            name = self.name(one.token)
            found[name if name not in found else f"{name}<{one.token}>"] = _finite(one.logprob)
        if token not in {one.token for one in top[:num_shown]}:
            name = self.name(token)
            found[name if name not in found else f"{name}<{token}>"] = value
        return found

    def _offsets(self, tokens: Sequence[int]) -> list[int]:
        offsets, content = [], b""
        for token in tokens:
            offsets.append(len(content.decode(errors="ignore")))
            if token not in self._special:
                content += self._bytes(token)
        return offsets


@dataclass(frozen=True)
class Echo:
    """The prompt's own tokens with their log-probabilities; the first has none."""

    tokens: list[int]
    logprobs: list[float | None]
    tops: list[tuple[Alternative, ...]]

    @classmethod
    def of(cls, tokens: Sequence[int], score: OptionScore) -> "Echo":
        """What a score says of a prompt."""
        values: list[float | None] = [None, *map(_finite, score.logprobs[1:])]
        return cls(list(tokens), values, list(score.alternatives))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else LEAST_LOGPROB
