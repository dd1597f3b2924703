"""Masked mode is BERT's: single tokens in place, 80 % masked, 10 % random, 10 % as they are."""

import random

import numpy as np
import pytest

from glm_dist.errors import ConfigError
from glm_dist.objective import (
    BlankInfillSettings,
    Mode,
    ObjectiveSettings,
    assemble,
    draw_plan,
    reference_settings,
    visible_keys,
)

REFERENCE = reference_settings({"bert_prob": 1.0})
MASKED = {"token_probability": 0, "sentence_probability": 0, "document_probability": 0}
SETTINGS = BlankInfillSettings(
    ObjectiveSettings(**MASKED, masked_probability=1), REFERENCE.special, np.zeros(500, dtype=bool)
)


def text(length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(seed).integers(8, 500, size=length).astype(np.int32)
    tokens[[0, -1]] = SETTINGS.special.enc, SETTINGS.special.eos
    loss_mask = np.ones(length, dtype=np.uint8)
    loss_mask[0] = 0
    return tokens, loss_mask


def sample_of(tokens, loss_mask, seed):
    plan = draw_plan(tokens, loss_mask, random.Random(seed), SETTINGS)
    assert plan.mode is Mode.MASKED
    assert plan.infilled_length == len(tokens)
    return assemble(tokens, loss_mask, plan, SETTINGS)


def test_the_whole_text_is_part_a_and_the_loss_is_on_what_was_chosen():
    tokens, loss_mask = text(100, 0)
    sample = sample_of(tokens, loss_mask, 1)
    chosen = sample.loss_mask > 0
    assert chosen.sum() == round(0.15 * 98)
    assert not chosen[[0, -1]].any()
    assert (sample.targets == tokens).all()
    assert (sample.tokens == tokens)[~chosen].all()
    assert sample.part_a_length == 100
    assert (sample.position_ids == np.arange(100)).all()
    assert not sample.block_position_ids.any()
    rows = np.ones((1, 100), dtype=int)
    assert (visible_keys(rows, np.full((1, 100), sample.part_a_length)) == 100).all()


def test_shares_are_those_of_bert():
    kinds = np.zeros(3)
    for seed in range(400):
        tokens, loss_mask = text(200, seed)
        sample = sample_of(tokens, loss_mask, seed)
        chosen = sample.loss_mask > 0
        became, was = sample.tokens[chosen], tokens[chosen]
        is_masked = became == SETTINGS.special.mask
        kinds += [is_masked.sum(), ((became != was) & ~is_masked).sum(), (became == was).sum()]
        assert not np.isin(became[~is_masked], range(8)).any()
    assert kinds / kinds.sum() == pytest.approx([0.8, 0.1, 0.1], abs=0.012)


def test_the_same_key_gives_the_same_sample_and_short_texts_one_target():
    tokens, loss_mask = text(60, 3)
    once, again = sample_of(tokens, loss_mask, 4), sample_of(tokens, loss_mask, 4)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not np.array_equal(once.tokens, sample_of(tokens, loss_mask, 5).tokens)
    assert sample_of(*text(3, 0), 0).loss_mask.tolist() == [0, 1, 0]


def test_modes_mix_and_must_add_up():
    from glm_dist.config import load_config

    mixed = ObjectiveSettings(**{**MASKED, "token_probability": 0.5}, masked_probability=0.5)
    settings = BlankInfillSettings(mixed, SETTINGS.special, SETTINGS.sentence_end)
    tokens, loss_mask = text(50, 0)
    modes = [draw_plan(tokens, loss_mask, random.Random(i), settings).mode for i in range(400)]
    assert set(modes) == {Mode.TOKEN, Mode.MASKED}
    assert 160 < modes.count(Mode.MASKED) < 240
    with pytest.raises(ConfigError, match="masked_probability together"):
        load_config(ObjectiveSettings, None, ["masked_probability=0.5"])
