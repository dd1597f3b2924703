"""What a request changes in the logits of its own row: penalties, biases, bans and ends.

They stand apart from the sampler, which does the same to all rows. Each is a function of the tokens
generated so far, so an answer that was interrupted goes on with the same ones.
"""

from collections.abc import Iterator, Sequence
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from glm_dist.inference.detokenize import TokenTexts
from glm_dist.inference.requests import SamplingSettings
from glm_dist.inference.sampling import Edit, Rule
from glm_dist.inference.sequences import Growing

FORBIDDING_BIAS = -100.0
"""OpenAI's interface promises a ban at this value."""


def build_rule(sequence: Growing, texts: TokenTexts, ends: Sequence[int]) -> Rule:
    """How the current blank of an answer is filled, its edits in the order of their doing."""
    settings = sequence.sampling
    return Rule(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        num_logprobs=settings.num_logprobs,
        edits=tuple(_edits(sequence, settings, texts, ends)),
    )


def _edits(
    sequence: Growing, settings: SamplingSettings, texts: TokenTexts, ends: Sequence[int]
) -> Iterator[Edit]:
    if settings.repetition_penalty != 1:
        yield partial(_penalise_repetition, sequence, settings.repetition_penalty)
    if settings.presence_penalty or settings.frequency_penalty:
        yield partial(_penalise_counts, sequence, settings)
    if settings.logit_bias:
        yield partial(
            _add_bias,
            torch.tensor(list(settings.logit_bias)),
            torch.tensor(
                [
                    -torch.inf if bias <= FORBIDDING_BIAS else bias
                    for bias in settings.logit_bias.values()
                ]
            ),
        )
    if settings.allowed_tokens:
        yield partial(_keep_only, torch.tensor(settings.allowed_tokens))
    if settings.no_repeat_ngram:
        yield partial(_forbid_repeated, sequence, settings.no_repeat_ngram)
    for word in settings.bad_words:
        yield _WordBan(sequence, texts, word.encode())
    if settings.min_tokens or settings.ignore_eos:
        yield partial(_forbid_end, sequence, settings, torch.tensor(ends))


def _penalise_repetition(sequence: Growing, penalty: float, scores: Tensor) -> None:
    seen = torch.unique(torch.tensor([*sequence.group.tokens.tolist(), *sequence.generated]))
    seen = seen.to(scores.device)
    old = scores[seen]
    scores[seen] = torch.where(old > 0, old / penalty, old * penalty)


def _penalise_counts(sequence: Growing, settings: SamplingSettings, scores: Tensor) -> None:
    if not sequence.generated:
        return
    seen, counts = torch.unique(torch.tensor(sequence.generated), return_counts=True)
    penalty = settings.presence_penalty + settings.frequency_penalty * counts
    scores[seen.to(scores.device)] -= penalty.to(scores.device)


def _add_bias(tokens: Tensor, bias: Tensor, scores: Tensor) -> None:
    scores[tokens.to(scores.device)] += bias.to(scores.device)


def _keep_only(tokens: Tensor, scores: Tensor) -> None:
    tokens = tokens.to(scores.device)
    kept = scores[tokens]
    scores.fill_(-torch.inf)
    scores[tokens] = kept


def _forbid_repeated(sequence: Growing, size: int, scores: Tensor) -> None:
    """Each token that has followed what the answer ends with, one less than `size` tokens long."""
    answer = np.array(sequence.answer, dtype=np.int64)
    if len(answer) < size:
        return
    runs = np.lib.stride_tricks.sliding_window_view(answer, size)
    is_begun = (runs[:, :-1] == answer[len(answer) - size + 1 :]).all(axis=1)
    scores[torch.from_numpy(runs[is_begun, -1]).to(scores.device)] = -torch.inf


def _forbid_end(
    sequence: Growing, settings: SamplingSettings, ends: Tensor, scores: Tensor
) -> None:
    if settings.ignore_eos or sequence.num_generated < settings.min_tokens:
        scores[ends.to(scores.device)] = -torch.inf


class _WordBan:
    """Forbids each token that would complete a word, whatever tokens spell its beginning."""

    def __init__(self, sequence: Growing, texts: TokenTexts, word: bytes) -> None:
        self._sequence, self._texts, self._word = sequence, texts, word
        self._holding = torch.tensor(texts.holding(word), dtype=torch.long)
        self._completing = cache(
            lambda size: torch.tensor(texts.beginning(word[size:]), dtype=torch.long)
        )

    def __call__(self, scores: Tensor) -> None:
        """Forbid in the logits [V] of the row."""
        scores[self._holding.to(scores.device)] = -torch.inf
        tail = self._tail()
        for size in range(1, len(self._word)):
            if tail.endswith(self._word[:size]):
                scores[self._completing(size).to(scores.device)] = -torch.inf

    def _tail(self) -> bytes:
        """The last bytes of the answer, as many as can begin the word."""
        tail = b""
        for token in reversed(self._sequence.answer):
            if len(tail) >= len(self._word) - 1:
                break
            tail = self._texts.of(token) + tail
        return tail
