"""Supervised samples: a prompt whose masks have given answers, or whose tokens have labels."""

from collections.abc import Sequence

import numpy as np

from glm_dist.errors import DataError
from glm_dist.objective.blank_infill import Sample
from glm_dist.objective.settings import BlankInfillSettings
from glm_dist.tokenizer import SpecialTokenIds


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
    masks = mask_places(prompt, settings.special)
    if not len(masks):
        raise DataError(
            "a supervised prompt holds no mask token; put [MASK], [sMASK] or [gMASK] where the "
            "answer belongs"
        )
    return filled_sample(prompt, masks[-1:], [answer], settings)


def mask_places(prompt: np.ndarray, special: SpecialTokenIds) -> np.ndarray:
    """Indices of the mask tokens, ascending."""
    return np.flatnonzero(np.isin(prompt, [special.mask, special.smask, special.gmask]))


def filled_sample(
    prompt: np.ndarray,
    places: Sequence[int] | np.ndarray,
    answers: Sequence[np.ndarray],
    settings: BlankInfillSettings,
) -> Sample:
    """Several masks of a prompt with the answer of each, in the order given.

    The loss is on the answers and their `<eop>`; each sees the prompt and the answers before it.
    """
    special, part_a = settings.special, len(prompt)
    inputs, targets, positions, blocks = (list[np.ndarray]() for _ in range(4))
    for place, answer in zip(places, answers, strict=True):
        length = len(answer) + 1
        inputs += [np.array([special.sop]), answer]
        targets += [answer, np.array([special.eop])]
        positions.append(np.full(length, place))
        counts = settings.options.use_block_positions
        blocks.append(np.arange(1, length + 1) if counts else np.ones(length))
    part_b = sum(map(len, positions))
    return Sample(
        np.concatenate((prompt, *inputs)).astype(np.int32),
        np.concatenate((prompt, *targets)).astype(np.int32),
        np.repeat(np.array([0, 1], np.uint8), [part_a, part_b]),
        np.concatenate((np.arange(part_a), *positions)).astype(np.int32),
        np.concatenate((np.zeros(part_a), *blocks)).astype(np.int32),
        part_a,
    )


def labelled_sample(
    tokens: np.ndarray, places: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray
) -> Sample:
    """A text all of which is seen, with the id of a label at each of some places.

    Where `labels` is [places, labels] each place has a share of every label, and so have the
    targets: float32 [S, labels].
    """
    length, tail = len(tokens), np.shape(labels)[1:]
    targets = np.zeros((length, *tail), np.float32 if tail else np.int32)
    loss_mask = np.zeros(length, np.uint8)
    targets[places], loss_mask[places] = labels, 1
    return Sample(
        tokens.astype(np.int32),
        targets,
        loss_mask,
        np.arange(length, dtype=np.int32),
        np.zeros(length, np.int32),
        length,
    )
