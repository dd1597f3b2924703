"""Texts in, texts out: the engine for callers that have all their texts at hand.

As in the reference, the blanks of a text are filled from left to right; each blank's tokens share
the position of its mask and count a second position from 1, and later blanks see earlier ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glm_dist.errors import ModelError
from glm_dist.inference.admission import check_is_language_model
from glm_dist.inference.engine import Engine
from glm_dist.inference.requests import Blank, Delta, Failure, Request
from glm_dist.inference.settings import EngineLimits, GenerationSettings
from glm_dist.model import GLM
from glm_dist.tokenizer import Masked, Tokenizer

NUM_RUNNING = 32
"""Texts at a time; more wait for their turn."""


@dataclass(frozen=True)
class Generation:
    """One text, filled."""

    prompt: str
    blanks: list[str]
    """What was generated for each mask, in the order of the masks."""
    text: str
    """The prompt with its blanks filled in, or with its continuation."""


class Generator:
    """Generates with one model and its tokenizer, many texts at a time."""

    def __init__(self, model: GLM, tokenizer: Tokenizer) -> None:
        check_is_language_model(model.settings)
        self.model = model.eval()
        self.tokenizer = tokenizer

    def generate(
        self,
        texts: Sequence[str],
        settings: GenerationSettings | Sequence[GenerationSettings] | None = None,
    ) -> list[Generation]:
        """Fill the `[MASK]`, `[sMASK]` and `[gMASK]` of each text; one without is continued.

        Args:
            texts: to fill.
            settings: of all texts, or one for each. With the same seed all texts are drawn with
                the same noise, and become alike where a model is unsure.

        Raises:
            RequestError: when a text or an answer is longer than the model's positions.
            ModelError: when the model's numbers are not finite.
        """
        if not texts:
            return []
        settings = settings or GenerationSettings()
        of_each = [settings] * len(texts) if isinstance(settings, GenerationSettings) else settings
        requests = [
            self._request(str(number), text, one)
            for number, (text, one) in enumerate(zip(texts, of_each, strict=True))
        ]
        answers = self._answer(requests)
        return [
            self._finish(text, request, blanks)
            for text, request, blanks in zip(texts, requests, answers, strict=True)
        ]

    def encode(self, text: str) -> Masked:
        """Part A of a text: `[ENC]`, its tokens, and `[gMASK]` where it has no mask."""
        special, masked = self.tokenizer.special, self.tokenizer.encode_masked(text)
        head = np.array([special.enc], np.int32)
        if not len(masked.places):
            tokens = np.concatenate((head, masked.tokens, [special.gmask])).astype(np.int32)
            return Masked(tokens, np.array([len(tokens) - 1]), (False,))
        tokens = np.concatenate((head, masked.tokens))
        return Masked(tokens, masked.places + 1, masked.behind_space)

    def _request(self, name: str, text: str, settings: GenerationSettings) -> Request:
        masked = self.encode(text)
        blanks = [
            Blank(int(place), settings.sampling, behind_space=is_behind)
            for place, is_behind in zip(masked.places, masked.behind_space, strict=True)
        ]
        return Request(name, masked.tokens.tolist(), blanks)

    def _answer(self, requests: Sequence[Request]) -> list[list[str]]:
        """The text of each blank of each request."""
        answers = [[""] * len(request.blanks) for request in requests]
        engine = Engine(self.model, self.tokenizer, _limits(requests))
        for output in engine.generate(requests):
            if isinstance(output, Failure):
                raise ModelError(f"text {output.request_id}: {output.message}")
            if isinstance(output, Delta):
                answers[int(output.request_id)][output.blank] += output.text
        return answers

    def _finish(self, text: str, request: Request, answers: list[str]) -> Generation:
        decode, prompt = self.tokenizer.decode, request.tokens
        pieces, start = [], 1
        for blank, answer in zip(request.blanks, answers, strict=True):
            space = " " if blank.behind_space else ""
            pieces += [decode(prompt[start : blank.place]), space, answer]
            start = blank.place + 1
        return Generation(text, answers, "".join([*pieces, decode(prompt[start:])]))


def _limits(requests: Sequence[Request]) -> EngineLimits:
    """A cache that holds the texts that run at a time, so that none is computed twice."""
    block = 16
    needed = sorted(
        len(request.tokens) + sum(blank.sampling.max_tokens for blank in request.blanks) + 3 * block
        for request in requests
    )
    num_running = min(NUM_RUNNING, len(requests))
    return EngineLimits(
        max_running=num_running,
        max_waiting=len(requests),
        cache_tokens=max(64, sum(needed[-num_running:])),
        block_tokens=block,
    )
