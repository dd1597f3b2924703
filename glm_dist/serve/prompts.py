"""From what a client asks to what the engine is asked: Part A and its blanks.

It stands apart as the one place that knows how texts, turns and blanks become tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

import numpy as np

from glm_dist.inference import Blank, EmbedRequest, Request, SamplingSettings, ScoreRequest
from glm_dist.inference.admission import room
from glm_dist.model import ModelSettings
from glm_dist.serve.errors import ApiError
from glm_dist.serve.protocol import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    InfillRequest,
    Message,
)
from glm_dist.serve.settings import RequestLimits
from glm_dist.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16
"""Of text completions, as OpenAI has it."""
ROLES = {"developer": "system", "tool": "observation"}
"""OpenAI's roles under ours; the others have the same names."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of a completion request."""

    tokens: np.ndarray
    """Ids of the prompt itself."""
    text: str
    request: Request | None
    """None where nothing is to be generated."""
    scoring: ScoreRequest | None = None
    """Asks for the log-probabilities of the prompt's own tokens."""


class Prompts:
    """Builds requests for one model."""

    def __init__(
        self, tokenizer: Tokenizer, settings: ModelSettings, limits: RequestLimits
    ) -> None:
        self._tokenizer, self._settings = tokenizer, settings
        self._special, self._limits = tokenizer.special, limits

    def of_completion(self, body: CompletionRequest, salt: str) -> list[Prompt]:
        """A request for each prompt."""
        self._check_completion(body)
        prompts = self._prompt_tokens(body.prompt)
        return [self._completion(body, tokens, text, salt) for tokens, text in prompts]

    def of_chat(self, body: ChatRequest, salt: str) -> Request:
        """The turns, each behind its role, and the assistant's next one."""
        self._check_sampled(body.num_samples, body.stops)
        if body.tools:
            raise ApiError(400, "tools: this model has no form for them", param="tools")
        if (body.response_format or {"type": "text"}).get("type") != "text":
            raise ApiError(
                400, "response_format: only text can be asked for so far", param="response_format"
            )
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs: asks for logprobs: true", param="top_logprobs")
        part_a = self.chat_tokens(body.messages)
        wanted = body.max_completion_tokens or body.max_tokens
        sampling = body.sampling(
            self._longest(wanted, part_a, len(part_a) - 1),
            (body.top_logprobs or 0) if body.logprobs else None,
        )
        blanks = [self._blank(sampling, len(part_a) - 1, body.seed)]
        return Request(_new_id(), part_a, blanks, body.num_samples, cache_salt=salt)

    def of_infill(self, body: InfillRequest, salt: str) -> Request:
        """The text with its masks as blanks."""
        self._check_sampled(body.num_samples, body.stops)
        tokens = self._tokenizer.encode_with_masks(body.input)
        part_a = [self._special.enc, *tokens.tolist()]
        masks = (self._special.mask, self._special.smask, self._special.gmask)
        places = [place for place, token in enumerate(part_a) if token in masks]
        if not places:
            raise ApiError(400, "input: has no [MASK], [sMASK] or [gMASK] to fill", param="input")
        if len(places) > self._limits.max_blanks:
            raise ApiError(
                400,
                f"input: has {len(places)} blanks; at most {self._limits.max_blanks} are filled",
                param="input",
            )
        sampling = body.sampling(body.max_tokens, body.logprobs)
        return Request(
            _new_id(),
            part_a,
            [self._blank(sampling, place, body.seed) for place in places],
            body.num_samples,
            is_joint=body.order == "left_to_right",
            cache_salt=salt,
        )

    def of_classify(self, body: ClassifyRequest, text: str, salt: str) -> ScoreRequest:
        """Each label as an option at the mask of the template."""
        if "{input}" not in body.template or "[MASK]" not in body.template:
            raise ApiError(400, "template: has to hold {input} and [MASK]", param="template")
        before, after = body.template.split("{input}", 1)
        encode = self._tokenizer.encode_with_masks
        # The text itself is never searched for masks.
        parts = (encode(before), self._tokenizer.encode(text), encode(after))
        part_a = [self._special.enc, *np.concatenate(parts).tolist()]
        options = [self._tokenizer.encode(label).tolist() for label in body.labels]
        place = part_a.index(self._special.mask)
        return ScoreRequest(_new_id(), part_a, place, options, cache_salt=salt)

    def of_embedding(self, tokens: np.ndarray) -> EmbedRequest:
        """Part A alone."""
        return EmbedRequest(_new_id(), [self._special.enc, *tokens.tolist()])

    def prompt_tokens(
        self, given: str | list[str] | list[int] | list[list[int]], param: str
    ) -> list[np.ndarray]:
        """Ids of each text."""
        return [tokens for tokens, _ in self._prompt_tokens(given, param)]

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Part A of a dialogue: roles and what they say, and the mask of the answer."""
        part_a = [self._special.enc]
        for message in messages:
            role = ROLES.get(message.role, message.role)
            part_a += [getattr(self._special, role), *self._tokenizer.encode(message.text).tolist()]
        return [*part_a, self._special.assistant, self._special.gmask]

    def _completion(
        self, body: CompletionRequest, tokens: np.ndarray, text: str, salt: str
    ) -> Prompt:
        special, ids = self._special, tokens.tolist()
        part_a = [special.enc, *ids, special.gmask]
        place = len(part_a) - 1
        if body.suffix:
            place = len(ids) + 1
            part_a = [*part_a[:place], special.mask, *self._tokenizer.encode(body.suffix).tolist()]
        wanted = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        request = None
        if wanted:
            blanks = [self._blank(body.sampling(wanted, body.logprobs), place, body.seed)]
            request = Request(_new_id(), part_a, blanks, body.num_samples, cache_salt=salt)
        scoring = None
        if body.echo and body.logprobs is not None:
            scoring = ScoreRequest(
                _new_id(),
                [special.enc, special.gmask],
                1,
                [ids],
                scores_end=False,
                num_logprobs=max(1, body.logprobs),
            )
        return Prompt(tokens, text, request, scoring)

    def _blank(self, sampling: SamplingSettings, place: int, seed: int | None) -> Blank:
        """A blank, drawn by the client's seed, or by one of its own."""
        drawn = uuid4().int >> 65 if seed is None else seed % (1 << 63)
        return Blank(place, sampling.model_copy(update={"seed": drawn}))

    def _longest(self, wanted: int | None, part_a: Sequence[int], place: int) -> int:
        """As many tokens as there is room for, where the client says nothing."""
        return wanted or max(1, room(len(part_a), place, self._settings))

    def _prompt_tokens(
        self, given: str | list[str] | list[int] | list[list[int]], param: str = "prompt"
    ) -> list[tuple[np.ndarray, str]]:
        if isinstance(given, str):
            given = [given]
        if not given:
            raise ApiError(400, f"{param}: is empty; give at least one", param=param)
        if isinstance(given[0], int):
            given = [given]  # type: ignore[list-item]
        if len(given) > self._limits.max_prompts:
            raise ApiError(
                400,
                f"{param}: holds {len(given)}; at most {self._limits.max_prompts} go at once",
                param=param,
            )
        return [self._tokens(one, param) for one in given]

    def _tokens(self, given: object, param: str) -> tuple[np.ndarray, str]:
        if not isinstance(given, str):
            tokens = np.array(given, dtype=np.int64)
            if tokens.size and tokens.max() >= self._settings.vocab_size:
                raise ApiError(
                    400,
                    f"{param}: holds the id {tokens.max()}; this model knows 0 to "
                    f"{self._settings.vocab_size - 1}",
                    param=param,
                )
            return tokens, self._tokenizer.decode(tokens, keep_special=True)
        if not given:
            raise ApiError(400, f"{param}: is an empty text", param=param)
        return self._tokenizer.encode(given).astype(np.int64), given

    def _check_completion(self, body: CompletionRequest) -> None:
        self._check_sampled(body.num_samples, body.stops)
        if body.suffix and body.echo:
            raise ApiError(400, "echo: cannot go with suffix; leave one out", param="echo")
        if body.max_tokens == 0 and not body.echo:
            raise ApiError(
                400, "max_tokens: 0 asks for nothing; only echo goes with it", param="max_tokens"
            )
        if (body.best_of or 1) != 1 and body.best_of != body.n:
            raise ApiError(400, "best_of: only as many as n can be asked for", param="best_of")

    def _check_sampled(self, num_samples: int, stops: Sequence[str]) -> None:
        for param, value, most in (
            ("n", num_samples, self._limits.max_samples),
            ("stop", len(stops), self._limits.max_stops),
        ):
            if value > most:
                raise ApiError(400, f"{param}: got {value}; at most {most}", param=param)


def _new_id() -> str:
    return uuid4().hex
