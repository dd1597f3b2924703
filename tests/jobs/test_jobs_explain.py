"""Why a text got its label, as a user asks."""

import json

import pytest
from asking import run_job, write_random_model

from glm_dist.tasks import TASKS, save_task
from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

TEXT = "a moving story of one man"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A classifier of random weights, with its task."""
    folder = tmp_path_factory.mktemp("home") / "model"
    tokenizer = train_tokenizer(
        [f"{TEXT} and his dull dog"] * 50, TokenizerSettings(vocab_size=320)
    )
    task = TASKS["classification"].Settings(method="head", labels=["bad", "good"])
    head = {"kind": "sequence_classification", "labels": task.labels}
    write_random_model(folder, tokenizer, head=head)
    save_task(folder, task, 64)
    return folder


def run(model, *arguments):
    return run_job(model.parent, "explain.py", f"model={model}", *arguments)


def test_each_text_gets_a_file_of_figures_and_a_picture(model):
    done = run(model, f'texts=["{TEXT}", "a dull dog"]')
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    saved = json.loads((model / "explanations" / "000.json").read_text())
    assert "".join(saved["tokens"]).strip() == TEXT
    assert saved["gap"] < 0.02
    assert f"→ {saved['label']}, log odds {saved['log_odds']:.2f}" in done.stdout
    assert "</svg>" in (model / "explanations" / "001.svg").read_text()


def test_an_empty_text_is_named(model):
    done = run(model, 'texts=["fine", ""]')
    assert done.returncode == 2
    assert "texts[1]: the text is empty" in done.stderr


def test_over_a_file_it_is_measured_whether_masking_what_counts_lowers_the_score(model, tmp_path):
    rows = [f"{TEXT}\tgood", "his dull dog and one man\tbad", "a dull story\tbad"]
    (tmp_path / "test.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    done = run(model, f"data={tmp_path / 'test.tsv'}", "max_examples=2", f"output={tmp_path}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    kept = json.loads((tmp_path / "faithfulness.json").read_text())
    assert kept["num_texts"] == kept["num_complete"] == 2
    assert kept["interval"][0] <= kept["difference"] <= kept["interval"][1]
    assert "2 of 2 add up within 2%" in done.stdout


def test_texts_and_a_file_exclude_each_other(model):
    for given in ([], ['texts=["fine"]', "data=test.tsv"]):
        done = run(model, *given)
        assert done.returncode == 2
        assert "give texts or data" in done.stderr
