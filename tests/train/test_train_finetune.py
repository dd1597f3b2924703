"""Fine-tuning in one process: what is learnt, kept, resumed and refused."""

import json
import random
import shutil
from collections import Counter

import numpy as np
import pytest
from finetune_scenarios import BAD, FILLER, GOOD, SMALL, prepare, small_tokenizer, write_folder
from train_scenarios import KilledError

from glm_dist.errors import CheckpointError
from glm_dist.evaluate.answers import Answerer
from glm_dist.evaluate.calibration import calibrate
from glm_dist.evaluate.task_report import score_answers
from glm_dist.inference import load_model
from glm_dist.tasks import TASK_FILE, load_task
from glm_dist.train.unpack import unpack


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


def best_checkpoint(folder):
    step = json.loads((folder / "final.json").read_text())["best_step"]
    return folder / f"checkpoint-{step:08d}"


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_checkpoint_becomes_the_model_that_the_run_would_have_left(tuned):
    _, runner = tuned
    made = unpack(best_checkpoint(runner.folder))
    assert files_of(made) == files_of(runner.folder / "model")
    assert unpack(best_checkpoint(runner.folder)) == made


@pytest.mark.parametrize("tuned", ["cloze"], indirect=True)
def test_a_checkpoint_without_its_run_says_what_it_lacks(tuned, tmp_path):
    _, runner = tuned
    checkpoint = best_checkpoint(runner.folder)
    alone = shutil.copytree(checkpoint, tmp_path / "alone" / checkpoint.name)
    with pytest.raises(CheckpointError, match="lies in its run's folder"):
        unpack(alone)
    (tmp_path / "alone" / "config.json").write_bytes((runner.folder / "config.json").read_bytes())
    file = next(alone.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        unpack(alone)


def test_the_score_of_the_run_is_that_of_the_questions_asked_of_the_finished_model(tuned):
    prepared, runner = tuned
    dev = prepared.splits["validation"]
    answers = Answerer(*load_model(runner.folder), prepared.task).answer(dev)
    accuracy = score_answers(prepared.task, dev, answers)[0]
    final = json.loads((runner.folder / "final.json").read_text())
    assert accuracy.value == pytest.approx(100 * final["dev/accuracy"])


def test_probabilities_are_fitted_to_dev_examples_and_stay_so_with_the_model(tuned):
    prepared, runner = tuned
    dev = prepared.splits["validation"]
    # Labels that disagree with the model in a quarter of the examples, so that it is too sure.
    golds = [prepared.task.gold(one) for one in dev]
    golds = [golds[n - 1] if n % 4 == 0 else gold for n, gold in enumerate(golds)]
    model, tokenizer = load_model(runner.folder)
    before = Answerer(model, tokenizer, prepared.task).answer(dev)
    task = calibrate(runner.folder / "model", prepared.task, before, golds)
    kept = load_task(runner.folder / "model", tokenizer)
    assert kept.settings.temperature == task.settings.temperature > 1
    after = Answerer(model, tokenizer, kept).answer(dev)
    assert [one.value for one in after] == [one.value for one in before]
    sure = [np.mean([max(one.probabilities) for one in answers]) for answers in (before, after)]
    right = np.mean([one.value == gold for one, gold in zip(after, golds, strict=True)])
    assert abs(sure[1] - right) < abs(sure[0] - right) / 2


def test_few_shots_are_as_many_of_each_label_to_learn_from_and_to_choose_by(
    task, tokenizer, tmp_path
):
    shots = {**task, "shots": 5}
    first, _ = prepare(tmp_path / "first", shots, tokenizer)
    other, _ = prepare(tmp_path / "other", shots, tokenizer, seed=8)
    for split in ("train", "validation"):
        labels = Counter(one.text("label") for one in first.splits[split])
        assert labels == {"good": 5, "bad": 5}
    assert len(first.splits["test"]) == 60
    assert first.splits["train"] != other.splits["train"]


def test_runs_of_several_seeds_are_scored_on_the_same_examples(task, tokenizer, tmp_path):
    cut = {"kind": "classification", "train": task["train"], "test_share": 0.2, "max_examples": 50}
    first, _ = prepare(tmp_path / "first", cut, tokenizer)
    other, _ = prepare(tmp_path / "other", cut, tokenizer, seed=8)
    assert len(first.splits["test"]) == 10
    assert first.splits["test"] == other.splits["test"]
    assert first.splits["validation"] != other.splits["validation"]
    assert not {one.text("text") for one in first.splits["test"]} & {
        one.text("text") for one in first.splits["train"]
    }


def generated(number):
    """A word, and what is to be said to it: two words in an order that tells the word."""
    return {
        "source": " ".join([GOOD[number % 5]] * 3),
        "target": f"{BAD[number % 5]} {GOOD[(number + 1) % 5]}",
    }


def tagged(number):
    """Five words; a good one is an entity, and the word behind it belongs to it."""
    words = random.Random(number).choices([*FILLER, *GOOD], k=5)
    tags, inside = [], False
    for word in words:
        tags.append("B-A" if word in GOOD else "I-A" if inside else "O")
        inside = word in GOOD
    return {"tokens": words, "tags": tags}


@pytest.mark.parametrize(
    ("example", "task"),
    [
        (generated, {"kind": "translation", "template": "{source} [gMASK]"}),
        (tagged, {"kind": "labelling"}),
    ],
)
def test_texts_and_tags_are_answered_as_they_were_learnt(example, task, tokenizer, tmp_path):
    for number, split in enumerate(("train", "dev")):
        rows = [example(1000 * number + n) for n in range(200 if split == "train" else 40)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    paths = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "dev")}
    changes = {"epochs": 30, "evaluation": {"patience": 0}}
    prepared, runner = prepare(tmp_path / "run", {**task, **paths}, tokenizer, **changes)
    runner.run()
    model, tokenizer = load_model(runner.folder)
    task = load_task(runner.folder / "model", tokenizer)
    dev = prepared.splits["validation"]
    answers = Answerer(model, tokenizer, task).answer(dev)
    right = [
        one.value in (gold, *gold) for one, gold in zip(answers, map(task.gold, dev), strict=True)
    ]
    assert np.mean(right) > 0.9


@pytest.mark.parametrize("tuned", ["cloze"], indirect=True)
@pytest.mark.parametrize("method", ["cloze", "head"])
@pytest.mark.parametrize("kind", ["lora", "p_tuning"])
def test_an_adapter_learns_the_task_and_carries_it(kind, method, task, tuned, tmp_path):
    if kind == "lora":
        pytest.importorskip("peft")
    base = tuned[1].folder
    tuning = {"kind": kind, **({"rank": 4} if kind == "lora" else {"num_prefix_tokens": 4})}
    changes = {"init_from": str(base), "tuning": tuning, "epochs": 2}
    prepared, runner = prepare(tmp_path, {**task, "method": method}, **changes)
    runner.run()
    model, tokenizer = load_model(runner.folder)
    kept = load_task(runner.folder / "model", tokenizer)
    dev = prepared.splits["validation"]
    accuracy = score_answers(kept, dev, Answerer(model, tokenizer, kept).answer(dev))[0]
    final = json.loads((runner.folder / "final.json").read_text())
    assert accuracy.value == pytest.approx(100 * final["dev/accuracy"])
    assert accuracy.value > 80
    assert files_of(unpack(best_checkpoint(runner.folder))) == files_of(runner.folder / "model")


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
