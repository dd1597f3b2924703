"""Where the spans of token mode lie: lengths, and places that never touch or cross a document."""

import math
import random
from bisect import bisect
from functools import lru_cache
from itertools import accumulate

import numpy as np

from glm_dist.objective.settings import BlankInfillSettings

Span = tuple[int, int]
"""Start and end of a run of tokens, end exclusive."""


@lru_cache
def _cumulative_poisson(mean: int, longest: int) -> list[float]:
    return list(
        accumulate(
            math.exp(-mean) * mean**length / math.factorial(length)
            for length in range(1, longest + 1)
        )
    )


def draw_length(rng: random.Random, mean: int, longest: int) -> int:
    """A span length from 1..longest with Poisson weights, zero excluded (GLM_SPEC 1.3.1)."""
    weights = _cumulative_poisson(mean, longest)
    return 1 + bisect(weights, rng.random() * (weights[-1] + 0.0), 0, len(weights) - 1)


def draw_lengths(rng: random.Random, num_tokens: int, settings: BlankInfillSettings) -> list[int]:
    """Lengths until they reach the masked share of `num_tokens`; the overshoot is kept."""
    options = settings.options
    wanted = int(options.token_mask_ratio * num_tokens)
    if not settings.reference_compatible:
        wanted = max(1, wanted)
    lengths: list[int] = []
    masked = 0
    while masked < wanted:
        lengths.append(draw_length(rng, options.mean_span_length, options.max_span_length))
        masked += lengths[-1]
    return lengths


def place_spans(lengths: list[int], room: int, rng: random.Random, offset: int) -> list[Span]:
    """Spans of the given lengths in [offset, offset + room), at least one token between them."""
    gaps = room - sum(lengths) - len(lengths) + 1
    places = sorted(rng.randrange(gaps + 1) for _ in lengths)
    spans = []
    for place, length in zip(places, lengths, strict=True):
        spans.append((offset + place, offset + place + length))
        offset += length + 1
    return spans


def place_in_documents(
    tokens: np.ndarray, lengths: list[int], rng: random.Random, settings: BlankInfillSettings
) -> list[Span]:
    """The reference's placement: short documents take their share, the longest takes the rest.

    Lengths that do not fit are left out; the reference then drops the sample.
    """
    return _share_out(_documents(tokens, settings), lengths, rng, settings)


def place_in_runs(
    predictable: np.ndarray, lengths: list[int], rng: random.Random, settings: BlankInfillSettings
) -> list[Span]:
    """The same over runs of tokens that may be predicted; at least one span where there is any."""
    runs = sorted(_runs(predictable), key=lambda run: run[1])
    spans = _share_out(runs, lengths, rng, settings)
    if not spans and runs:
        start, room = runs[-1]
        spans = place_spans([min(lengths[0], room)], room, rng, start)
    return spans


def _documents(tokens: np.ndarray, settings: BlankInfillSettings) -> list[tuple[int, int]]:
    """(start, length) without ENC and eos, last to first, stably sorted by length."""
    borders = [-1, *np.flatnonzero(tokens == settings.special.eos).tolist()]
    end, documents = len(tokens), []
    for border in reversed(borders):
        start = border + 1
        if start < len(tokens) and tokens[start] == settings.special.enc:
            start += 1
        length = end - start
        if end == len(tokens) and length > 0:
            length -= 1  # the text's final token is never inside a span
        documents.append((start, length))
        end = border
    return sorted(documents, key=lambda document: document[1])


def _runs(predictable: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], predictable.view(np.int8), [0]))))
    starts, ends = edges[::2], edges[1::2]
    return list(zip(starts.tolist(), (ends - starts).tolist(), strict=True))


def _share_out(
    documents: list[tuple[int, int]],
    lengths: list[int],
    rng: random.Random,
    settings: BlankInfillSettings,
) -> list[Span]:
    spans: list[Span] = []
    taken = 0
    for number, (start, room) in enumerate(documents):
        is_longest = number == len(documents) - 1
        budget = room if is_longest else int(room * settings.options.token_mask_ratio)
        here = _prefix_that_fits(lengths[taken:], budget, with_gaps=is_longest)
        if here:
            spans += place_spans(here, room, rng, start)
            taken += len(here)
    return spans


def _prefix_that_fits(lengths: list[int], budget: int, *, with_gaps: bool) -> list[int]:
    total = 0
    for number, length in enumerate(lengths):
        total += length
        if total + (number if with_gaps else 0) > budget:
            return lengths[:number]
    return lengths
