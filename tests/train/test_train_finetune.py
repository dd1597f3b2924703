"""Fine-tuning in one process: what is learnt, kept, resumed and refused."""

import json

import pytest
from finetune_scenarios import SMALL, prepare, small_tokenizer, write_folder
from train_scenarios import KilledError

from glm_dist.evaluate.answers import Answerer
from glm_dist.evaluate.task_report import score_answers
from glm_dist.inference import load_model
from glm_dist.tasks import TASK_FILE, load_task


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("data"), {"train": 240, "dev": 40, "test": 60})
    paths = {split: str(folder / f"{split}.csv") for split in ("train", "dev", "test")}
    return {"kind": "classification", **paths}


@pytest.fixture(scope="module", params=["cloze", "head"])
def tuned(request, task, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    prepared, runner = prepare(folder, {**task, "method": request.param}, tokenizer, epochs=6)
    runner.run()
    return prepared, runner


def dev_lines(runner):
    lines = map(json.loads, (runner.folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "dev/loss" in line]


def test_a_text_is_classified_after_tuning_by_the_model_folder_alone(tuned):
    prepared, runner = tuned
    model, tokenizer = load_model(runner.folder)
    task = load_task(runner.folder / "model", tokenizer)
    test = prepared.splits["test"]
    answers = Answerer(model, tokenizer, task).answer(test)
    accuracy, macro_f1 = score_answers(task, test, answers)
    assert accuracy.value > 95
    assert macro_f1.value > 95
    assert all(sum(answer.probabilities) == pytest.approx(1) for answer in answers)
    kept = json.loads((runner.folder / "model" / TASK_FILE).read_text())
    assert "train" not in kept["task"]
    assert kept["task"]["labels"] == ["bad", "good"]


def test_the_finished_model_is_that_of_the_best_evaluation(tuned):
    prepared, runner = tuned
    final = json.loads((runner.folder / "final.json").read_text())
    lines = dev_lines(runner)
    score = {line["step"]: line["dev/error"] + 1e-6 * line["dev/loss"] for line in lines}
    best = min((step for step in score if step), key=lambda step: (score[step], -step))
    assert final["best_step"] == best
    assert (
        final["dev/accuracy"] == lines[[line["step"] for line in lines].index(best)]["dev/accuracy"]
    )


def test_the_score_of_the_run_is_that_of_the_questions_asked_of_the_finished_model(tuned):
    prepared, runner = tuned
    dev = prepared.splits["validation"]
    answers = Answerer(*load_model(runner.folder), prepared.task).answer(dev)
    accuracy = score_answers(prepared.task, dev, answers)[0]
    final = json.loads((runner.folder / "final.json").read_text())
    assert accuracy.value == pytest.approx(100 * final["dev/accuracy"])


def test_a_run_killed_in_the_middle_of_an_epoch_ends_with_the_same_weights(
    task, tokenizer, tmp_path
):
    whole = prepare(tmp_path / "whole", task, tokenizer, epochs=3)[1]
    broken = prepare(tmp_path / "broken", task, tokenizer, epochs=3)[1]
    whole.run()
    every = whole.settings.evaluation.every_steps
    with pytest.raises(KilledError):
        broken.run(break_at=every + every // 2)
    broken.run()
    assert broken.losses() == whole.losses()
    assert broken.weights_hash() == whole.weights_hash()
    seen = broken.rows_seen()
    assert seen == whole.rows_seen()


def test_the_run_ends_early_when_dev_scores_stay_as_they_are(task, tokenizer, tmp_path):
    changes = {"schedule": {**SMALL["schedule"], "peak_learning_rate": 1e-12}, "epochs": 20}
    prepared, runner = prepare(tmp_path, task, tokenizer, evaluation={"patience": 2}, **changes)
    ending = runner.run()
    assert ending.kind == "finished"
    assert ending.step < prepared.settings.num_steps / 2


def test_epochs_become_steps_and_a_part_of_the_rows_is_no_epoch(task, tokenizer, tmp_path):
    prepared, _ = prepare(tmp_path / "two", task, tokenizer, epochs=2)
    half, _ = prepare(tmp_path / "half", task, tokenizer, epochs=0.5)
    assert prepared.settings.num_steps == pytest.approx(2 * prepared.steps_per_epoch, abs=1)
    assert half.settings.num_steps == pytest.approx(prepared.steps_per_epoch / 2, abs=1)
