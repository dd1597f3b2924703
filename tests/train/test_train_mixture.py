"""One model tuned for several tasks: learnt together, capped, scored and asked apart."""

import json

import numpy as np
import pytest
from finetune_scenarios import prepare, small_tokenizer, write_folder

from glm_dist.data.samples import build_row_builder
from glm_dist.evaluate.answers import Answerer
from glm_dist.evaluate.task_report import PAGE, SCORES, read_answers, score_answers, write_answers
from glm_dist.inference import load_model
from glm_dist.tasks import load_task

CAP = 60
NUM_MOODS, NUM_PAIRS = 240, 40
NUMBERS = {"one": "man", "dog": "his", "town": "film", "story": "really"}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run of two tasks, ended."""
    folder = tmp_path_factory.mktemp("mixture")
    data = write_folder(folder / "data", {"train": NUM_MOODS, "dev": 40, "test": 60})
    words = list(NUMBERS)
    pairs = [(words[n % 4], NUMBERS[words[n % 4]]) for n in range(NUM_PAIRS)]
    (data / "pairs.tsv").write_text("".join(f"{one}\t{two}\n" for one, two in pairs))
    (data / "more.tsv").write_text("".join(f"{one}\t{two}\n" for one, two in NUMBERS.items()))
    files = {split: str(data / f"{split}.csv") for split in ("train", "dev", "test")}
    turned = {split: str(data / "more.tsv") for split in ("dev", "test")}
    columns = {"source": 0, "target": 1}
    task = {
        "kind": "mixture",
        "most_examples": CAP,
        "tasks": {
            "mood": {"kind": "classification", **files},
            "turned": {
                "kind": "translation",
                "train": str(data / "pairs.tsv"),
                **turned,
                "columns": columns,
                "decoding": {"max_tokens": 8},
            },
        },
    }
    prepared, runner = prepare(folder / "run", task, small_tokenizer(), epochs=24)
    runner.run()
    return prepared, runner


def test_both_are_learnt_by_one_model_and_scored_apart(tuned, tmp_path):
    prepared, runner = tuned
    model, tokenizer = load_model(runner.folder)
    task = load_task(runner.folder / "model", tokenizer)
    test = prepared.splits["test"]
    answers = Answerer(model, tokenizer, task).answer(test)
    scores = {score.name: score.value for score in score_answers(task, test, answers)}
    assert scores["mood accuracy"] > 95
    assert scores["turned chrF"] > 80
    written = write_answers(tmp_path, task, test, answers, {"model": "tiny"})
    assert [one.name for one in written] == list(scores)
    assert [one["name"] for one in json.loads((tmp_path / SCORES).read_text())["scores"]] == list(
        scores
    )
    page = (tmp_path / PAGE).read_text()
    for name in ("mood", "turned"):
        assert f"({name}/{PAGE})" in page
        assert (tmp_path / name / PAGE).exists()
    assert [one.value for one in read_answers(tmp_path)] == [one.value for one in answers]


def test_an_epoch_holds_no_more_of_a_task_than_the_cap(tuned):
    prepared, _ = tuned
    settings, dataset = prepared.settings, prepared.dataset
    builder = build_row_builder(dataset, "train", settings.rows, settings.objective, settings.seed)
    sources = dataset.sources_of_shard("train", 0)
    seen = set()
    for epoch in range(NUM_MOODS // CAP):
        documents = [piece.document for row in builder.pack_shard(epoch, 0) for piece in row]
        by_task = {
            name: [one for one in documents if sources[one] == name] for name in set(sources)
        }
        assert len(by_task["turned"]) == NUM_PAIRS
        assert len(by_task["mood"]) == pytest.approx(CAP, abs=2)
        assert not seen & set(by_task["mood"])
        seen |= set(by_task["mood"])
    assert len(seen) == NUM_MOODS
    assert prepared.steps_per_epoch < NUM_MOODS / 4


def test_dev_counts_tasks_alike(tuned):
    _, runner = tuned
    lines = map(json.loads, (runner.folder / "metrics.jsonl").read_text().splitlines())
    dev = [line for line in lines if "dev/loss" in line]
    for line in dev:
        assert line["dev/loss"] == pytest.approx(
            np.mean([line["dev/loss_mood"], line["dev/loss_turned"]])
        )
    assert dev[-1]["dev/loss"] < 0.3 * dev[0]["dev/loss"]
