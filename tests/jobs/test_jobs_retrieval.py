"""Translations looked for by embeddings, as a user asks."""

import json

import pytest
from asking import run_job, write_random_model

from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

PAIRS = [
    (f"{n} red houses of {n + 7} towns", f"{n} rote Häuser von {n + 7} Orten") for n in range(40)
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model of random weights, and pairs with a config that reads them."""
    folder = tmp_path_factory.mktemp("home")
    texts = [text for pair in PAIRS for text in pair]
    tokenizer = train_tokenizer(texts, TokenizerSettings(vocab_size=320))
    write_random_model(folder / "model", tokenizer)
    lines = "".join(f"{source}\t{target}\n" for source, target in PAIRS)
    (folder / "pairs.tsv").write_text(lines, encoding="utf-8")
    task = {"kind": "translation", "train": str(folder / "pairs.tsv"), "test_share": 0.5}
    task["columns"] = {"source": 0, "target": 1}
    (folder / "pairs.json").write_text(json.dumps({"name": "pairs", "task": task}))
    task = {"kind": "correction", "train": str(folder / "pairs.tsv")}
    (folder / "other.json").write_text(json.dumps({"name": "other", "task": task}))
    return folder


def run(home, *arguments):
    return run_job(home, "retrieval.py", "model=model", *arguments)


def test_the_model_stands_beside_random_weights_in_the_table(home):
    done = run(home, f"task_config={home / 'pairs.json'}", "max_tokens=64", "num_pairs=10")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    entry = json.loads((home / "results" / "tasks.json").read_text())["retrieval"]
    assert (entry["metric"], entry["examples"]) == ("accuracy@1", 10)
    assert set(entry["arms"]) == {"glm", "scratch"}
    assert len(entry["arms"]["scratch"]["seeds"]) == 3
    # Seed 1234 is that of the model here, whose weights are random too.
    assert entry["arms"]["scratch"]["seeds"][0] == entry["score"]


def test_what_is_no_translation_is_refused(home):
    done = run(home, f"task_config={home / 'other.json'}", "max_tokens=64")
    assert done.returncode == 2
    assert "is correction; give one of translation" in done.stderr


def test_sentences_longer_than_the_model_are_refused(home):
    done = run(home, f"task_config={home / 'pairs.json'}", "max_tokens=100000")
    assert done.returncode == 2
    assert "max_tokens: got 100000; the model's positions end at" in done.stderr
