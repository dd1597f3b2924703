"""What a model writes: the same beginnings for all, variety, and a page with samples."""

import json

import pytest
from train_scenarios import make_dataset

from glm_dist.data.rows import RowSettings
from glm_dist.evaluate.generation import continue_all, generation_entry, held_out_starts
from glm_dist.evaluate.left_to_right import (
    count_ngrams,
    forward_of_model,
    forward_of_ngrams,
    left_to_right,
    predict,
)
from glm_dist.evaluate.results import publish_entry
from glm_dist.inference import GenerationSettings, Generator
from glm_dist.model import ModelSettings, build_model

ORIGIN = {
    "date": "2026-01-02",
    "command": "python jobs/generation.py",
    "commit": "0",
    "versions": {},
    "hardware": {"processor": "one", "cores": 2, "memory_gib": 1, "gpus": []},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def model(dataset):
    shape = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "max_position_embeddings": 128}
    return build_model(ModelSettings(preset=None, vocab_size=dataset.tokenizer.vocab_size, **shape))


@pytest.fixture(scope="module")
def entry(dataset, model):
    real = held_out_starts(dataset, "en", 12, 8, 16)
    settings = GenerationSettings(max_new_tokens=16, temperature=1.0)
    written = continue_all(Generator(model, dataset.tokenizer), real, settings)
    rows = RowSettings(sequence_length=64)
    heldout = left_to_right(dataset, rows, 20, 4)
    found = {
        "glm": predict(heldout, forward_of_model(model)),
        "ngram": predict(heldout, forward_of_ngrams(count_ngrams(dataset, rows, 3))),
    }
    return generation_entry(
        found, {"glm": {"en": written, "zh": []}, "text": {"en": real, "zh": []}}
    )


def test_beginnings_are_of_held_out_texts_and_the_same_ones_every_time(dataset):
    starts = held_out_starts(dataset, "en", 5, 8, 16)
    assert starts == held_out_starts(dataset, "en", 12, 8, 16)[:5]
    documents = range(dataset.num_documents("validation"))
    texts = [dataset.tokenizer.decode(dataset.tokens("validation", one)) for one in documents]
    assert all(any(text.startswith(one.start + one.text) for text in texts) for one in starts)
    assert held_out_starts(dataset, "zh", 5, 8, 16) == []
    assert held_out_starts(dataset, "en", 5, 8, 10_000) == []


def test_what_was_trained_on_the_text_predicts_it_better_than_random_weights(entry):
    assert entry["metric"] == "bits per byte"
    assert entry["ngram"] < entry["score"]
    assert entry["gains"]["ngram"]["interval"][0] > 0
    assert entry["arms"]["glm"]["scores"]["bits per byte en"] == pytest.approx(entry["score"])


def test_variety_is_measured_of_what_was_written_and_of_real_text(entry):
    for arm in ("glm", "text"):
        scores = entry["arms"][arm]["scores"]
        assert 0 < scores["distinct-1 en"] < scores["distinct-2 en"] <= 100
        assert 0 <= scores["repetition en"] < 50
    assert entry["arms"]["text"]["score"] is None
    assert len(entry["samples"]["en"]) == 10
    assert "zh" not in entry["samples"]


def test_the_page_shows_the_samples_and_the_picture_leaves_out_what_is_no_share(entry, tmp_path):
    page = publish_entry(tmp_path, "generation", {**entry, "told": {}}, ORIGIN).read_text()
    assert f"| generation | bits per byte | {entry['examples']} |" in page
    for sample in entry["samples"]["en"]:
        assert f"**{' '.join(sample['start'].split())}**" in page
    assert "generation" not in (tmp_path / "tasks-arms.svg").read_text()
    assert set(json.loads((tmp_path / "tasks.json").read_text())) == {"generation", "origin"}
