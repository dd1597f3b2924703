"""What a request changes in the logits of its own row: penalties, biases, ends, choices.

They stand apart from the sampler, which does the same to all rows. Each is a function of the tokens
generated so far, so an answer that was interrupted goes on with the same ones.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from glm_dist.inference.requests import SamplingSettings
from glm_dist.inference.sampling import Edit
from glm_dist.inference.sequences import Generated
from glm_dist.tokenizer import Tokenizer

FORBIDDING_BIAS = -100.0
"""OpenAI's interface promises a ban at this value."""


def build_edits(sequence: Generated, tokenizer: Tokenizer, ends: Sequence[int]) -> tuple[Edit, ...]:
    """The edits of the current blank of an answer, in the order of their doing."""
    return tuple(_edits(sequence, sequence.sampling, tokenizer, ends))


def _edits(
    sequence: Generated, settings: SamplingSettings, tokenizer: Tokenizer, ends: Sequence[int]
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
    if settings.min_tokens or settings.ignore_eos:
        yield partial(_forbid_end, sequence, settings, torch.tensor(ends))
    if settings.choices:
        choices = [tokenizer.encode(choice).tolist() for choice in settings.choices]
        yield partial(_keep_to_choices, sequence, choices, tokenizer.special.eop)


def _penalise_repetition(sequence: Generated, penalty: float, scores: Tensor) -> None:
    seen = torch.unique(torch.tensor([*sequence.group.tokens.tolist(), *sequence.generated]))
    seen = seen.to(scores.device)
    old = scores[seen]
    scores[seen] = torch.where(old > 0, old / penalty, old * penalty)


def _penalise_counts(sequence: Generated, settings: SamplingSettings, scores: Tensor) -> None:
    if not sequence.generated:
        return
    seen, counts = torch.unique(torch.tensor(sequence.generated), return_counts=True)
    penalty = settings.presence_penalty + settings.frequency_penalty * counts
    scores[seen.to(scores.device)] -= penalty.to(scores.device)


def _add_bias(tokens: Tensor, bias: Tensor, scores: Tensor) -> None:
    scores[tokens.to(scores.device)] += bias.to(scores.device)


def _forbid_end(
    sequence: Generated, settings: SamplingSettings, ends: Tensor, scores: Tensor
) -> None:
    if settings.ignore_eos or sequence.num_generated < settings.min_tokens:
        scores[ends.to(scores.device)] = -torch.inf


def _keep_to_choices(
    sequence: Generated, choices: list[list[int]], end: int, scores: Tensor
) -> None:
    count = sequence.num_generated
    begun = sequence.generated[len(sequence.generated) - count :]
    following = {
        choice[count] if len(choice) > count else end
        for choice in choices
        if choice[:count] == begun
    }
    allowed = torch.tensor(sorted(following), device=scores.device)
    kept = scores[allowed]
    scores.fill_(-torch.inf)
    scores[allowed] = kept
