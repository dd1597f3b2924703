"""Every predictor is asked for the same tokens after the same tokens, and scored a byte."""

import numpy as np
import pytest
from train_scenarios import make_dataset

from glm_dist.data.rows import RowSettings
from glm_dist.evaluate.heldout import TokenOutputs
from glm_dist.evaluate.left_to_right import (
    bits_by_language,
    count_ngrams,
    forward_of_model,
    forward_of_ngrams,
    left_to_right,
    predict,
)
from glm_dist.evaluate.score import gain
from glm_dist.model import ModelSettings, build_model

ROWS = RowSettings(sequence_length=128)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def heldout(dataset):
    return left_to_right(dataset, ROWS, num_rows=10_000, micro_batch_size=4)


def uniform(size):
    """Predicts nothing."""
    return lambda rows: TokenOutputs(rows["loss_mask"] * np.float32(np.log(size)))


def test_whoever_knows_nothing_needs_the_bits_of_the_vocabulary(dataset, heldout):
    found = predict(heldout, uniform(512))
    text = np.concatenate(
        [dataset.tokens("validation", n) for n in range(len(dataset.lengths("validation")))]
    )
    text = text[heldout.piece_bytes[text] > 0]
    assert len(found.nats) == len(text)
    assert found.num_bytes.sum() == heldout.piece_bytes[text].sum()
    bits = found.bits_per_byte()
    assert bits.value == pytest.approx(9 * len(text) / found.num_bytes.sum(), rel=1e-6)
    assert found.perplexity(dataset.languages[0]) == pytest.approx(512, rel=1e-5)
    assert all(nats == pytest.approx(np.log(512)) for nats in found.nats_by_place().values())


def test_places_count_from_the_beginning_of_each_text(heldout):
    found = predict(heldout, uniform(2))
    for sample in np.unique(found.samples)[:20]:
        places = found.places[found.samples == sample]
        assert places[0] == 0
        assert (np.diff(places) > 0).all()
    assert list(found.nats_by_place())[:2] == ["0–15", "16–31"]


def test_bits_by_language_are_those_of_each_language_alone(dataset, heldout):
    shape = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "max_position_embeddings": 256}
    model = build_model(
        ModelSettings(preset=None, vocab_size=dataset.tokenizer.vocab_size, **shape)
    )
    found = bits_by_language(model, dataset, ROWS, num_rows=10_000, micro_batch_size=4)
    whole = predict(heldout, forward_of_model(model))
    assert list(found) == [name for name in dataset.languages if name in whole.languages]
    for name, score in found.items():
        assert score.value == pytest.approx(whole.bits_per_byte(name).value, rel=1e-5)


def test_ngrams_say_of_the_rows_what_they_say_of_the_texts(dataset, heldout):
    model = count_ngrams(dataset, ROWS, order=3)
    found = predict(heldout, forward_of_ngrams(model))
    rows = heldout.rows
    for row in range(3):
        places = np.flatnonzero(rows["segment_ids"][row] == 1)
        places = places[rows["loss_mask"][row, places] > 0]
        nats = -model.log_probabilities(rows["targets"][row, places])
        asked = found.nats[found.samples == row * (rows["segment_ids"].max() + 1) + 1]
        assert asked == pytest.approx(nats[heldout.text_mask[row, places]], rel=1e-6)
    nothing = predict(heldout, uniform(dataset.tokenizer.vocab_size))
    assert gain([nothing.bits_per_byte()], [found.bits_per_byte()]).low > 0


def test_a_model_is_measured_as_it_is_in_training(dataset, heldout):
    settings = ModelSettings(
        preset=None,
        num_layers=1,
        hidden_size=32,
        num_heads=2,
        vocab_size=dataset.tokenizer.vocab_size,
    )
    forward = forward_of_model(build_model(settings))
    found, figures = predict(heldout, forward), heldout.measure(forward, lambda sums: sums)
    assert found.nats.mean() == pytest.approx(figures["heldout/loss"], rel=1e-6)
    assert found.bits_per_byte().value == pytest.approx(figures["heldout/bits_per_byte"], rel=1e-6)
    language = dataset.languages[0]
    by_language = found.bits_per_byte(language).value
    assert by_language == pytest.approx(figures[f"heldout/bits_per_byte_{language}"], rel=1e-6)
