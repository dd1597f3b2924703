"""Few labels and many texts as a user runs them: scores side by side, and a model to ask."""

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
TAKEN = ("rows", "batch", "engine", "sinks", "workers", "schedule")
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def home(tmp_path):
    tokenizer = small_tokenizer()
    settings = ModelSettings(**SMALL["model"], vocab_size=tokenizer.vocab_size)
    save_weights(tmp_path / "base", dict(build_model(settings).named_parameters()))
    tokenizer.save(tmp_path / "base")
    (tmp_path / "base" / CONFIG).write_text(json.dumps({"model": settings.model_dump(mode="json")}))
    write_folder(tmp_path / "data", {"train": 200, "dev": 60, "test": 60})
    return tmp_path


def run(home, job, *arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / job), *arguments],
        env={**os.environ, "GLM_DIST_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_scores_stand_side_by_side_and_the_classifier_scores_the_same_again(home):
    paths = {split: str(home / "data" / f"{split}.csv") for split in ("train", "dev", "test")}
    task = {"kind": "classification", **paths, "shots": 16}
    task["patterns"] = ["[MASK] : {text}", "{text} was [MASK]"]
    changes = {name: SMALL[name] for name in TAKEN}
    changes |= {"task": task, "seeds": [3], "epochs": 12, "evaluations_per_epoch": 0.25}
    overrides = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    told = run(home, "pet.py", "init_from=base", "dropout=0", *overrides)
    folder = home / "runs" / "pet"
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    assert list(scores) == ["pattern 1", "pattern 2", "ensemble", "final"]
    assert scores["final"][0]["value"] > 80
    assert f"final        accuracy {scores['final'][0]['value']:.1f} (" in told
    run(home, "evaluate.py", "model=runs/pet/final", f"data={paths['test']}")
    again = json.loads((folder / "final" / "evaluation" / "scores.json").read_text())
    assert again["scores"][0]["value"] == scores["final"][0]["value"]
