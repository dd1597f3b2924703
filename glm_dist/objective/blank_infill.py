"""From a text and its plan to the sample a model trains on: Part A, Part B, two positions."""

import random
from typing import NamedTuple

import numpy as np

from glm_dist.objective.plan import InfillPlan, draw_plan
from glm_dist.objective.settings import BlankInfillSettings, Mode

MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the chosen tokens; the rest stay (Devlin et al. 2019)


class Sample(NamedTuple):
    """One GLM sample of S tokens; arrays are int32 [S], `loss_mask` is uint8 [S].

    Where labels have shares `targets` is float32 [S, labels].
    """

    tokens: np.ndarray
    targets: np.ndarray
    loss_mask: np.ndarray
    position_ids: np.ndarray
    block_position_ids: np.ndarray
    part_a_length: int


def blank_infill(
    tokens: np.ndarray,
    loss_mask: np.ndarray,
    rng: random.Random,
    settings: BlankInfillSettings,
) -> Sample:
    """Cut spans out of a text and lay them out to be generated (GLM_SPEC 1.2 to 1.6).

    Args:
        tokens: [N] token ids, `[ENC]` first, documents ended by eos.
        loss_mask: [N], 1 where a token may be predicted.
        rng: the sample's own generator; every draw comes from it.
        settings: the objective, bound to the vocabulary.
    """
    tokens, loss_mask = np.asarray(tokens, dtype=np.int32), np.asarray(loss_mask, dtype=np.uint8)
    plan = draw_plan(tokens, loss_mask, rng, settings)
    return assemble(tokens, loss_mask, plan, settings)


def assemble(
    tokens: np.ndarray, loss_mask: np.ndarray, plan: InfillPlan, settings: BlankInfillSettings
) -> Sample:
    """Build the sample a plan describes; no draws but the corruption the plan has a seed for."""
    if plan.is_suffix:
        return _assemble_suffix(tokens, loss_mask, plan, settings)
    if plan.mode is Mode.MASKED:
        return _assemble_masked(tokens, plan, settings)
    return _assemble_spans(tokens, plan, settings)


def _assemble_suffix(
    tokens: np.ndarray, loss_mask: np.ndarray, plan: InfillPlan, settings: BlankInfillSettings
) -> Sample:
    """Text + mask | sop + suffix without its last token → suffix; no `<eop>` (GLM_SPEC 1.6)."""
    start = plan.spans[0][0]
    kept, suffix = tokens[:start], tokens[start:]
    part_a = np.append(kept, settings.mask_id(plan.mode))
    if not settings.reference_compatible:
        loss_mask = loss_mask * (tokens != settings.special.enc)
    blocks = _block_positions(np.arange(1, len(suffix) + 1), settings)
    return Sample(
        _join(part_a, [settings.special.sop], suffix[:-1]),
        _join(part_a, suffix),
        _join(np.zeros(len(part_a)), loss_mask[start:]).astype(np.uint8),
        _join(np.arange(len(part_a)), np.full(len(suffix), start)),
        _join(np.zeros(len(part_a)), blocks),
        len(part_a),
    )


def _assemble_spans(tokens: np.ndarray, plan: InfillPlan, settings: BlankInfillSettings) -> Sample:
    """Text with a mask a span | sop + span → span + eop, for each span (GLM_SPEC 1.4)."""
    spans = np.array(plan.spans, dtype=np.int64).reshape(-1, 2)
    starts, lengths = spans[:, 0], spans[:, 1] - spans[:, 0]
    kept = _kept(len(tokens), spans)
    position_of = np.cumsum(kept) - 1
    part_a = tokens.copy()
    part_a[starts] = settings.mask_id(plan.mode)
    part_a = part_a[kept]

    firsts = np.cumsum(lengths + 1) - (lengths + 1)
    within = np.arange((lengths + 1).sum()) - np.repeat(firsts, lengths + 1)
    source = np.repeat(starts, lengths + 1) + within
    inputs = _corrupt(tokens[source - 1], plan, settings)
    inputs[firsts] = settings.special.sop
    targets = tokens[np.minimum(source, len(tokens) - 1)]
    targets[firsts + lengths] = settings.special.eop
    return Sample(
        _join(part_a, inputs),
        _join(part_a, targets),
        np.repeat(np.array([0, 1], np.uint8), [len(part_a), len(inputs)]),
        _join(np.arange(len(part_a)), np.repeat(position_of[starts], lengths + 1)),
        _join(np.zeros(len(part_a)), _block_positions(within + 1, settings)),
        len(part_a),
    )


def _assemble_masked(tokens: np.ndarray, plan: InfillPlan, settings: BlankInfillSettings) -> Sample:
    """The whole text in Part A, and the loss where tokens were chosen: most of them are masked."""
    places = np.array([start for start, _ in plan.spans], dtype=np.int64)
    draws = np.random.RandomState((plan.corruption_seed or 0) & 0xFFFFFFFF).random_sample(
        (2, len(places))
    )
    words = settings.word_ids[(draws[1] * len(settings.word_ids)).astype(np.int64)]
    becomes = np.where(draws[0] < MASKED_SHARE + RANDOM_SHARE, words, tokens[places])
    inputs, loss_mask = tokens.copy(), np.zeros(len(tokens), dtype=np.uint8)
    inputs[places] = np.where(draws[0] < MASKED_SHARE, settings.mask_id(plan.mode), becomes)
    loss_mask[places] = 1
    zeros = np.zeros(len(tokens), dtype=np.int32)
    return Sample(
        inputs, tokens, loss_mask, np.arange(len(tokens), dtype=np.int32), zeros, len(tokens)
    )


def _kept(num_tokens: int, spans: np.ndarray) -> np.ndarray:
    """What stays in Part A, the first token of each span giving its place to the mask; [N] bool."""
    depth = np.zeros(num_tokens + 1, dtype=np.int64)
    depth[spans[:, 0] + 1] += 1
    np.subtract.at(depth, spans[:, 1], 1)
    return np.cumsum(depth)[:num_tokens] == 0


def _corrupt(inputs: np.ndarray, plan: InfillPlan, settings: BlankInfillSettings) -> np.ndarray:
    """Part B's inputs with some replaced by `[dBLOCK]` (the reference draws from a global rng)."""
    if plan.corruption_seed is None:
        return inputs
    draws = np.random.RandomState(plan.corruption_seed & 0xFFFFFFFF).random_sample(len(inputs))
    replaced = draws < settings.options.corrupt_probability
    return np.where(replaced, settings.special.dblock, inputs).astype(np.int32)


def _block_positions(positions: np.ndarray, settings: BlankInfillSettings) -> np.ndarray:
    return positions if settings.options.use_block_positions else np.ones_like(positions)


def _join(*parts: np.ndarray | list[int]) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])
