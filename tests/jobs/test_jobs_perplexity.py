"""Bits per byte of models and of n-grams as a user asks for them."""

import json

import pytest
from asking import run_job, write_random_model
from train_scenarios import make_dataset

from glm_dist.tokenizer import TokenizerSettings, train_tokenizer


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A dataset, a model of its tokenizer and one of another."""
    folder = tmp_path_factory.mktemp("home")
    other = train_tokenizer(["another text of other words"] * 50, TokenizerSettings(vocab_size=300))
    dataset = make_dataset(folder / "set")
    for name, tokenizer in {"mine": dataset.tokenizer, "other": other}.items():
        write_random_model(folder / name, tokenizer, max_position_embeddings=64)
    return folder


def run(home, *arguments):
    return run_job(home, "perplexity.py", "dataset=set", *arguments)


def test_a_model_stands_beside_the_ngrams_in_print_and_in_the_file(home):
    docs = ["--docs", str(home / "docs")]
    done = run(home, "models=[mine]", "rows.sequence_length=64", "num_rows=20", *docs)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    figures = json.loads((home / "results" / "perplexity.json").read_text())["figures"]
    assert list(figures) == ["mine", "5-gram"]
    random, counted = (one["languages"]["en"] for one in figures.values())
    assert counted["high"] < random["low"]  # it was trained, the model was not
    assert random["perplexity"] > counted["perplexity"] > 1
    assert f"5-gram                   {counted['value']:.3f}" in done.stdout
    page = (home / "docs" / "perplexity.md").read_text()
    assert f"| 5-gram | {counted['value']:.3f} (" in page
    assert "(perplexity-places.svg)" in page
    assert (home / "docs" / "perplexity-places.svg").read_text().startswith("<?xml")


def test_all_that_does_not_fit_is_said_at_once(home):
    done = run(home, "models=[mine, other]", "rows.sequence_length=128")
    assert done.returncode == 2
    assert "other has another tokenizer than" in done.stderr
    assert "128 is more than the 64 positions of mine; set it to 64 at most" in done.stderr
    assert run(home, "ngram_order=0").returncode == 2
