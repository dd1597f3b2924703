"""Supervised samples: a prompt with a mask, and the answer generated in its place."""

import numpy as np

from glm_dist.errors import DataError
from glm_dist.objective.blank_infill import Sample
from glm_dist.objective.settings import BlankInfillSettings


def supervised_sample(
    prompt: np.ndarray, answer: np.ndarray, settings: BlankInfillSettings
) -> Sample:
    """Part A is the prompt, Part B the answer; the loss is on the answer and its `<eop>` alone.

    Args:
        prompt: [P] ids with one of the three mask tokens; the last one is the answer's place.
        answer: [K] ids.
        settings: the objective, bound to the vocabulary.

    Raises:
        DataError: when the prompt holds no mask token.
    """
    special = settings.special
    masks = np.flatnonzero(np.isin(prompt, [special.mask, special.smask, special.gmask]))
    if not len(masks):
        raise DataError(
            "a supervised prompt holds no mask token; put [MASK], [sMASK] or [gMASK] where the "
            "answer belongs"
        )
    part_a, part_b = len(prompt), len(answer) + 1
    blocks = np.arange(1, part_b + 1) if settings.options.use_block_positions else np.ones(part_b)
    return Sample(
        np.concatenate((prompt, [special.sop], answer)).astype(np.int32),
        np.concatenate((prompt, answer, [special.eop])).astype(np.int32),
        np.repeat(np.array([0, 1], np.uint8), [part_a, part_b]),
        np.concatenate((np.arange(part_a), np.full(part_b, masks[-1]))).astype(np.int32),
        np.concatenate((np.zeros(part_a), blocks)).astype(np.int32),
        part_a,
    )
