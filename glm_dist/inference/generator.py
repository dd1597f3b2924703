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
from glm_dist.tokenizer import Tokenizer

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
        special = tokenizer.special
        self._mask_ids = (special.mask, special.smask, special.gmask)

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
        prompts = [self.encode(text) for text in texts]
        requests = [
            Request(
                str(number),
                prompt.tolist(),
                [Blank(int(place), one.sampling) for place in self._places(prompt)],
            )
            for number, (prompt, one) in enumerate(zip(prompts, of_each, strict=True))
        ]
        answers = self._answer(requests)
        return [
            self._finish(text, prompt, answers[number])
            for number, (text, prompt) in enumerate(zip(texts, prompts, strict=True))
        ]

    def encode(self, text: str) -> np.ndarray:
        """Part A of a text: `[ENC]`, its tokens, and `[gMASK]` where it has no mask."""
        tokens = self.tokenizer.encode_with_masks(text)
        tail = [] if np.isin(tokens, self._mask_ids).any() else [self.tokenizer.special.gmask]
        return np.concatenate(([self.tokenizer.special.enc], tokens, tail)).astype(np.int64)

    def _places(self, prompt: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.isin(prompt, self._mask_ids))

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

    def _finish(self, text: str, prompt: np.ndarray, answers: list[str]) -> Generation:
        pieces, start = [], 1
        for place, answer in zip(self._places(prompt), answers, strict=True):
            pieces += [self.tokenizer.decode(prompt[start:place]), answer]
            start = int(place) + 1
        pieces.append(self.tokenizer.decode(prompt[start:]))
        return Generation(text, answers, "".join(pieces))


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
