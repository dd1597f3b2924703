"""Asking models that were tuned for nothing, few-shot, as a user does; no Ray is started."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_scenarios import SMALL, small_tokenizer, write_folder

from glm_dist.engine import save_weights
from glm_dist.engine.folders import CONFIG
from glm_dist.model import ModelSettings, build_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    tokenizer = small_tokenizer()
    settings = ModelSettings(**SMALL["model"], vocab_size=tokenizer.vocab_size)
    save_weights(folder / "base", dict(build_model(settings).named_parameters()))
    tokenizer.save(folder / "base")
    (folder / "base" / CONFIG).write_text(json.dumps({"model": settings.model_dump(mode="json")}))
    data = write_folder(folder / "data", {"train": 40, "dev": 10, "test": 30})
    task = {
        "kind": "classification",
        **{split: str(data / f"{split}.csv") for split in ("train", "dev", "test")},
        "patterns": ["[MASK] : {text}"],
    }
    config = {"name": "shots", "rows": {"sequence_length": 96}, "task": task}
    (folder / "shots.yaml").write_text(json.dumps(config))
    (folder / "pairs.tsv").write_text("one\tman\ndog\this\ntown\tfilm\nstory\treally\n" * 4)
    pairs = {"kind": "translation", "train": str(folder / "pairs.tsv"), "test_share": 0.25}
    pairs |= {"columns": {"source": 0, "target": 1}, "decoding": {"max_tokens": 4}}
    mixture = {"kind": "mixture", "tasks": {"mood": task, "pairs": pairs}}
    (folder / "mixture.yaml").write_text(json.dumps({**config, "task": mixture}))
    (folder / "head.yaml").write_text(json.dumps({"task": {**task, "method": "head"}}))
    return folder


def run(home, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "evaluate.py"), "model=base", *arguments],
        env={**os.environ, "GLM_DIST_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_base_is_asked_behind_examples_of_several_draws(home):
    config = f"task_config={home / 'shots.yaml'}"
    done = run(home, config, "in_context=8", "num_seeds=2")
    assert done.returncode == 0, done.stderr[-2000:]
    kept = json.loads((home / "base" / "evaluation" / "scores.json").read_text())
    accuracy = kept["scores"][0]
    assert accuracy["name"] == "accuracy"
    assert accuracy["value"] == pytest.approx(sum(accuracy["by_seed"]) / 2)
    for one in kept["seeds"]:
        assert one["questions"] == 30
        assert one["dropped"] > 0
        assert one["shown"] + one["dropped"] == 30 * 16
        folder = home / "base" / "evaluation" / f"seed-{one['seed']}"
        scores = json.loads((folder / "scores.json").read_text())["scores"]
        assert scores[0]["value"] == accuracy["by_seed"][one["seed"]]
    assert "over all questions did not fit 96 tokens" in done.stdout
    assert "over seeds   accuracy" in done.stdout


def test_tasks_of_a_mixture_are_scored_together_and_one_by_one(home):
    config, output = f"task_config={home / 'mixture.yaml'}", home / "base" / "evaluation"
    done = run(home, config)
    assert done.returncode == 0, done.stderr[-2000:]
    kept = json.loads((output / "scores.json").read_text())
    assert {one["name"].split()[0] for one in kept["scores"]} == {"mood", "pairs"}
    assert kept["examples"] == 34, "a quarter of the pairs, all four of one sentence"
    whole = {one["name"]: one["value"] for one in kept["scores"]}
    done = run(home, config, "part=mood", f"data={home / 'data' / 'test.csv'}")
    assert done.returncode == 0, done.stderr[-2000:]
    [accuracy, _] = json.loads((output / "scores.json").read_text())["scores"]
    assert accuracy["value"] == whole["mood accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task_config={home}/mixture.yaml", "part=moods"], "part: got 'moods'; the model was"),
        (["task_config={home}/mixture.yaml", "data=x.csv"], "name one of mood, pairs"),
        (["task_config={home}/shots.yaml", "part=mood"], "the task is no mixture; leave it out"),
        (["task_config={home}/head.yaml"], "asks for another head than the model has"),
        (["task_config={home}/shots.yaml", "max_tokens=9999"], "positions end at 512"),
        (["in_context=2"], "carries no task; give a model that jobs/finetune.py has tuned, or"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_what_to_do(home, arguments, message):
    done = run(home, *(one.format(home=home) for one in arguments))
    assert done.returncode == 2
    assert message in done.stderr
