"""Translations that are found among all others, and embeddings that do not depend on the batch."""

import numpy as np
import pytest

from glm_dist.evaluate.retrieval import embed, retrieval_scores
from glm_dist.model import ModelSettings, build_model
from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

TEXTS = ["a red house", "the old man reads", "rain", "two dogs and one cat", "a green house"]


def units(rng, count, size=16):
    vectors = rng.normal(size=(count, size))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_each_direction_is_counted_by_itself():
    sources = np.eye(4)
    targets = np.eye(4)[[0, 1, 2, 2]]  # the last one's own is not among them
    both, there, back = retrieval_scores(sources, targets)
    assert there.value == 75.0
    assert back.value == 75.0
    assert both.value == 75.0
    swapped, there, back = retrieval_scores(sources, np.roll(sources, 1, axis=0))
    assert (swapped.value, there.value, back.value) == (0, 0, 0)


def test_noise_is_found_by_chance_and_a_near_copy_always():
    rng = np.random.default_rng(0)
    sources = units(rng, 400)
    assert retrieval_scores(sources, units(rng, 400))[0].value < 2
    assert (
        retrieval_scores(sources, sources + 0.01 * rng.normal(size=sources.shape))[0].value == 100
    )


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 20, TokenizerSettings(vocab_size=320))


def test_embeddings_are_centred_units_in_the_order_of_the_texts(tokenizer):
    settings = ModelSettings(
        preset=None, num_layers=1, hidden_size=32, num_heads=2, vocab_size=tokenizer.vocab_size
    )
    model = build_model(settings)
    vectors = embed(model, tokenizer, TEXTS, 16)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(TEXTS)))
    turned = embed(model, tokenizer, TEXTS[::-1], 16)[::-1]
    assert vectors == pytest.approx(turned, abs=1e-5)
    assert retrieval_scores(vectors, turned)[0].value == 100
