"""The reference's short sequences: a micro-batch cropped into many short texts (GLM_SPEC 1.8).

Training keys the same choice by the piece instead (`data/rows.py`), so that it does not depend on a
micro-batch; this form stands for parity with the reference.
"""

import random
from collections.abc import Sequence

import numpy as np

from glm_dist.objective.blank_infill import Sample, assemble
from glm_dist.objective.plan import draw_mode, draw_plan_of
from glm_dist.objective.settings import BlankInfillSettings

Text = tuple[np.ndarray, np.ndarray]
"""Tokens and loss mask."""


def blank_infill_batch(
    texts: Sequence[Text], rng: random.Random, settings: BlankInfillSettings, max_length: int
) -> list[Sample]:
    """A micro-batch as the reference makes it: one mode for all, perhaps cropped short first."""
    if rng.random() < settings.options.short_sequence_probability:
        texts = split_texts(texts, rng, settings, max_length)
    mode, single_span = draw_mode(rng, settings)
    samples = []
    for tokens, loss_mask in texts:
        plan = draw_plan_of(mode, single_span, tokens, loss_mask, rng, settings)
        samples.append(assemble(tokens, loss_mask, plan, settings))
    return samples


def split_texts(
    texts: Sequence[Text], rng: random.Random, settings: BlankInfillSettings, max_length: int
) -> list[Text]:
    """Crop each text, its ENC apart, several times to one drawn length, moved to sentence ends."""
    target = rng.randrange(32, max_length - 1)
    crops = []
    for tokens, loss_mask in texts:
        for _ in range((max_length - 1) // target):
            start, end = _crop(tokens, target, rng, settings)
            crop = np.concatenate(([settings.special.enc], tokens[start:end]))
            mask = np.concatenate(([0], loss_mask[start:end]))
            crops.append((crop.astype(np.int32), mask.astype(np.uint8)))
    return crops


def _crop(
    tokens: np.ndarray, target: int, rng: random.Random, settings: BlankInfillSettings
) -> tuple[int, int]:
    """Start and end within the text after ENC, each moved left to just after a sentence end."""
    is_end = settings.sentence_end[tokens] | (tokens == settings.special.eos)
    borders = np.concatenate(([1], np.flatnonzero(is_end[1:]) + 2))
    drawn = 1 + rng.randrange(max(1, len(tokens) - target))
    start = int(borders[borders <= drawn].max())
    hard_end = min(start + target, len(tokens))
    end = int(borders[borders <= hard_end].max())
    return start, end if end - start >= target // 2 else hard_end
