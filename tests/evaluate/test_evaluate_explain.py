"""Attributions add up to the score, name the word that decides, and show in any script."""

import json

import numpy as np
import pytest
import torch

from glm_dist.evaluate.explain import (
    TOLERANCE,
    Decision,
    attention_rollout,
    deletion_drops,
    explain,
    integrated_gradients,
)
from glm_dist.evaluate.explain_picture import draw_explanation
from glm_dist.model import GLM, Batch, HeadSettings, ModelSettings, build_model
from glm_dist.objective import Sample
from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

WORDS = ["的", "电影", "今天", "音乐", "学校", "他们", "城市", "天气"]
GOOD, BAD = "很好", "糟糕"


@pytest.fixture(scope="module")
def tokenizer():
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice([*WORDS, GOOD, BAD], size=12)) for _ in range(300)]
    return train_tokenizer(iter(lines), TokenizerSettings(vocab_size=420, character_coverage=1.0))


def text_of(rng, label):
    words = list(rng.choice(WORDS, size=8))
    words.insert(int(rng.integers(8)), GOOD if label else BAD)
    return "".join(words)


def sample_of(tokenizer, text):
    tokens = np.concatenate(([tokenizer.special.enc], tokenizer.encode(text))).astype(np.int32)
    positions = np.arange(len(tokens), dtype=np.int32)
    zeros = np.zeros(len(tokens), dtype=np.int32)
    return Sample(tokens, zeros, zeros.astype(np.uint8), positions, zeros, len(tokens))


def decision_of(tokenizer, text, label):
    return Decision(sample_of(tokenizer, text), place=0, answers=[0, 1], chosen=label)


@pytest.fixture(scope="module")
def model(tokenizer) -> GLM:
    """A classifier that has learned that one word decides."""
    head = HeadSettings(kind="sequence_classification", labels=["bad", "good"], dropout=0.0)
    settings = ModelSettings(
        preset=None,
        num_layers=2,
        hidden_size=48,
        num_heads=2,
        vocab_size=tokenizer.vocab_size,
        head=head,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = build_model(settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rng = np.random.default_rng(1)
    for _ in range(60):
        labels = rng.integers(2, size=16)
        samples = [sample_of(tokenizer, text_of(rng, label)) for label in labels]
        longest = max(len(sample.tokens) for sample in samples)

        def pad(arrays, longest=longest):
            return torch.tensor(
                np.stack([np.pad(a, (0, longest - len(a))) for a in arrays]), dtype=torch.int32
            )

        segments = pad([np.ones(len(one.tokens)) for one in samples])
        ends = pad([np.full(len(one.tokens), len(one.tokens)) for one in samples])
        targets, loss_mask = torch.zeros_like(segments), torch.zeros_like(segments)
        targets[:, 0], loss_mask[:, 0] = torch.from_numpy(labels), 1
        batch = Batch(
            tokens=pad([one.tokens for one in samples]),
            targets=targets,
            position_ids=pad([one.position_ids for one in samples]),
            block_position_ids=torch.zeros_like(segments),
            segment_ids=segments,
            prefix_ends=ends,
            loss_mask=loss_mask,
        )
        loss = model(*batch).loss_sum
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    assert loss.item() / 16 < 0.1
    return model.eval()


def test_attributions_add_up_within_two_percent_and_name_the_deciding_word(model, tokenizer):
    rng = np.random.default_rng(2)
    for number in range(20):
        label = number % 2
        text = text_of(rng, label)
        found = explain(model, tokenizer, decision_of(tokenizer, text, label), "x")
        assert found.gap <= TOLERANCE
        assert found.log_odds > 1
        assert "".join(found.tokens).strip() == text
        best = found.tokens[int(np.argmax(found.attributions))]
        assert set(best) & set(GOOD if label else BAD)


def test_the_sum_is_exact_for_a_linear_score_and_close_for_a_steep_one():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 7, generator=generator)
    weights = torch.randn(5, 7, generator=generator)
    baseline = torch.zeros(5, 7)
    linear = integrated_gradients(lambda x: (x * weights).sum((1, 2)), inputs, baseline)
    assert linear == pytest.approx((inputs * weights).sum(1).numpy(), rel=1e-5)

    def steep(points):
        return torch.tanh(40 * ((points * weights).sum((1, 2)) - 0.3))

    whole = float(steep(inputs[None]) - steep(baseline[None]))
    assert integrated_gradients(steep, inputs, baseline).sum() == pytest.approx(whole, rel=0.02)


def test_deleting_what_counts_lowers_the_score_more_than_deleting_at_random(model, tokenizer):
    rng = np.random.default_rng(3)
    drops = []
    for number in range(20):
        decision = decision_of(tokenizer, text_of(rng, number % 2), number % 2)
        found = explain(model, tokenizer, decision, "x")
        drops.append(deletion_drops(model, tokenizer, decision, found.attributions, number))
    top, at_random = np.mean(drops, axis=0)
    assert top > 2
    assert top > 2 * at_random


def test_rollout_is_a_share_of_what_is_seen(model, tokenizer):
    decision = decision_of(tokenizer, text_of(np.random.default_rng(4), 1), 1)
    rollout = attention_rollout(model, decision)
    assert rollout.sum() == pytest.approx(1)
    assert (rollout > 0).all()
    causal = build_model(
        model.settings.model_copy(
            update={"causal": True, "num_kv_heads": 1, "head": HeadSettings()}
        )
    ).eval()
    of_third = attention_rollout(causal, Decision(decision.sample, 3, [5, 6], 0))
    assert of_third[:4].sum() == pytest.approx(1)
    assert not of_third[4:].any()


def test_an_explanation_is_saved_and_drawn_with_its_own_letters(model, tokenizer, tmp_path):
    text = "电影<b>很好&"
    found = explain(model, tokenizer, decision_of(tokenizer, text, 1), "正面")
    found.save(tmp_path / "explanation.json")
    saved = json.loads((tmp_path / "explanation.json").read_text(encoding="utf-8"))
    assert saved["tokens"] == found.tokens
    assert len(saved["attributions"]) == len(saved["rollout"]) == len(found.tokens)
    assert saved["gap"] <= TOLERANCE
    draw_explanation(tmp_path / "explanation.svg", found)
    from xml.etree import ElementTree

    root = ElementTree.parse(tmp_path / "explanation.svg").getroot()
    letters = "".join(root.itertext())
    assert "正面" in letters
    assert "很" in letters
    assert root.attrib["width"] == "760"
