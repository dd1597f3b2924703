import json
import random
from pathlib import Path

import numpy as np
import pytest

from glm_dist.errors import DataError
from glm_dist.objective import (
    BlankInfillSettings,
    Mode,
    ObjectiveSettings,
    assemble,
    blank_infill,
    blank_infill_batch,
    draw_plan,
    piece_rng,
    reference_settings,
    supervised_sample,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "blank_samples.jsonl"
LINES = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
REFERENCE = reference_settings({"bert_prob": 1.0})


def settings(**options):
    shares = dict.fromkeys(("token", "sentence", "document", "causal"), 0.0)
    for name in list(shares):
        if name in options:
            shares[name] = options.pop(name)
    if not sum(shares.values()):
        shares.update(token=0.4, sentence=0.3, document=0.2, causal=0.1)
    named = {f"{name}_probability": value for name, value in shares.items()}
    objective = ObjectiveSettings(**named, **options)
    return BlankInfillSettings(objective, REFERENCE.special, REFERENCE.sentence_end)


def random_text(rng, length, documents=1):
    tokens = np.array([rng.randrange(8, 60) for _ in range(length)], dtype=np.int32)
    tokens[0] = 1
    loss_mask = np.ones(length, dtype=np.uint8)
    for _ in range(documents - 1):
        place = rng.randrange(2, max(3, length - 2))
        if place + 1 < length:
            tokens[place : place + 2] = [0, 1]
    if rng.random() < 0.5:
        tokens[-1] = 0
    loss_mask[tokens == 1] = 0
    return tokens, loss_mask


@pytest.mark.parametrize("number", range(len(LINES)))
def test_the_reference_setting_gives_every_golden_sample(number):
    line = LINES[number]
    sample = blank_infill(
        np.array(line["input"]),
        np.ones(len(line["input"])),
        random.Random(line["seed"]),
        reference_settings(line["options"]),
    )
    for name in ("tokens", "targets", "loss_mask", "position_ids", "block_position_ids"):
        assert getattr(sample, name).tolist() == line[name], name
    assert sample.part_a_length == line["division"]


def test_every_short_or_long_text_gives_a_sample_with_loss_of_the_length_planned():
    rng = random.Random(0)
    chosen = settings(single_span_probability=0.1, corrupt_probability=0.1)
    modes = set()
    for trial in range(4000):
        tokens, loss_mask = random_text(rng, rng.randrange(3, 120), rng.choice([1, 1, 3]))
        if not ((loss_mask > 0) & (tokens != 0)).any():
            continue
        plan = draw_plan(tokens, loss_mask, random.Random(trial), chosen)
        sample = assemble(tokens, loss_mask, plan, chosen)
        assert {len(array) for array in sample[:5]} == {plan.infilled_length}
        assert sample.loss_mask.sum() >= 1
        assert not sample.loss_mask[: sample.part_a_length].any()
        assert (sample.block_position_ids[: sample.part_a_length] == 0).all()
        assert (sample.block_position_ids[sample.part_a_length :] >= 1).all()
        modes.add(plan.mode)
    assert modes == {Mode.TOKEN, Mode.SENTENCE, Mode.DOCUMENT, Mode.CAUSAL}


def test_spans_never_touch_in_token_mode_and_everything_cut_is_generated_once():
    rng = random.Random(1)
    for trial in range(300):
        tokens, loss_mask = random_text(rng, 200, 3)
        plan = draw_plan(tokens, loss_mask, random.Random(trial), settings(token=1.0))
        spans = sorted(plan.spans)
        assert all(a[1] < b[0] for a, b in zip(spans, spans[1:], strict=False))
        cut = np.concatenate([tokens[start:end] for start, end in plan.spans])
        assert not np.isin(cut, [0, 1]).any()


def test_defect_3_the_next_documents_enc_is_never_a_target():
    tokens = np.array([1, 20, 21, 10, 22, 23, 0, 1, 24, 25, 10, 26, 27, 10], dtype=np.int32)
    loss_mask = (tokens != 1).astype(np.uint8)
    options = {"bert_prob": 0.0, "gap_sentence_prob": 1.0}
    reference, fixed = 0, 0
    for seed in range(50):
        sample = blank_infill(tokens, loss_mask, random.Random(seed), reference_settings(options))
        reference += (sample.targets[sample.loss_mask > 0] == 1).sum()
        sample = blank_infill(tokens, loss_mask, random.Random(seed), settings(sentence=1.0))
        fixed += (sample.targets[sample.loss_mask > 0] == 1).sum()
    assert reference > 0
    assert fixed == 0


def test_defect_4_a_text_without_sentence_ends_still_bears_loss_and_keeps_context():
    tokens = np.array([1, *range(20, 50), 0], dtype=np.int32)
    loss_mask = np.ones(len(tokens), dtype=np.uint8)
    options = {"bert_prob": 0.0, "gap_sentence_prob": 1.0}
    broken = blank_infill(tokens, loss_mask, random.Random(0), reference_settings(options))
    assert broken.loss_mask.sum() == 0
    sample = blank_infill(tokens, loss_mask, random.Random(0), settings(sentence=1.0))
    assert 0 < sample.loss_mask.sum() < 20


def test_defect_5_tokens_without_loss_are_never_predicted():
    rng = random.Random(5)
    for seed in range(200):
        tokens = np.array([1, *(rng.randrange(8, 60) for _ in range(99))], dtype=np.int32)
        loss_mask = np.zeros(100, dtype=np.uint8)
        loss_mask[60:] = 1
        tokens[:60] = np.where(tokens[:60] == 1, 1, 7)  # a prompt of one recognisable token
        sample = blank_infill(tokens, loss_mask, random.Random(seed), settings())
        assert not (sample.targets[sample.loss_mask > 0] == 7).any()
        assert sample.loss_mask.sum() > 0


def test_defect_2_spans_that_do_not_fit_are_left_out_and_the_sample_kept():
    chosen = settings(token=1.0, token_mask_ratio=0.9)
    for seed in range(100):
        tokens, loss_mask = random_text(random.Random(seed), 24)
        sample = blank_infill(tokens, loss_mask, random.Random(seed), chosen)
        assert sample.loss_mask.sum() > 1


def test_corruption_replaces_inputs_and_never_targets_or_sop():
    tokens, loss_mask = random_text(random.Random(2), 300)
    plain = blank_infill(tokens, loss_mask, random.Random(9), settings(token=1.0))
    chosen = settings(token=1.0, corrupt_probability=1.0)
    corrupt = blank_infill(tokens, loss_mask, random.Random(9), chosen)
    part_b = corrupt.tokens[corrupt.part_a_length :]
    assert set(part_b.tolist()) == {3, 7}
    assert np.array_equal(plain.targets, corrupt.targets)


def test_without_block_positions_the_second_position_is_one_in_part_b():
    tokens, loss_mask = random_text(random.Random(3), 100)
    chosen = settings(use_block_positions=False)
    sample = blank_infill(tokens, loss_mask, random.Random(1), chosen)
    assert (sample.block_position_ids[sample.part_a_length :] == 1).all()


def test_the_key_of_a_piece_is_hashed_not_added():
    first = piece_rng(1, 2, 3, 4).random()
    assert first == piece_rng(1, 2, 3, 4).random()
    others = [piece_rng(2, 1, 3, 4), piece_rng(1, 3, 2, 4), piece_rng(1, 2, 4, 3)]
    assert first not in [rng.random() for rng in others]


def test_a_supervised_sample_bears_loss_on_the_answer_alone():
    sample = supervised_sample(np.array([1, 20, 2, 21]), np.array([30, 31]), REFERENCE)
    assert sample.tokens.tolist() == [1, 20, 2, 21, 3, 30, 31]
    assert sample.targets[sample.loss_mask > 0].tolist() == [30, 31, 4]
    assert sample.position_ids.tolist() == [0, 1, 2, 3, 2, 2, 2]
    assert sample.block_position_ids.tolist() == [0, 0, 0, 0, 1, 2, 3]
    with pytest.raises(DataError, match="mask"):
        supervised_sample(np.array([1, 20]), np.array([30]), REFERENCE)


def test_short_sequences_crop_a_micro_batch_and_share_one_mode():
    texts = [random_text(random.Random(seed), 200) for seed in range(3)]
    chosen = settings(short_sequence_probability=1.0)
    samples = blank_infill_batch(texts, random.Random(0), chosen, max_length=200)
    assert len(samples) >= 3
    assert len(samples) % 3 == 0
    assert all(sample.tokens[0] == 1 for sample in samples)
    untouched = settings(short_sequence_probability=0.0)
    assert len(blank_infill_batch(texts, random.Random(0), untouched, max_length=200)) == 3


def test_probabilities_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="add up to"):
        ObjectiveSettings(token_probability=0.9)
