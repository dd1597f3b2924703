"""A task with all its arms as a user runs it: the figures in print, in JSON and on the page."""

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
LSTM = {"embedding_size": 16, "hidden_size": 16, "num_epochs": 3, "batch_size": 16}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    tokenizer = small_tokenizer()
    settings = ModelSettings(**SMALL["model"], vocab_size=tokenizer.vocab_size)
    base = folder / "runs" / "base"
    save_weights(base, dict(build_model(settings).named_parameters()))
    tokenizer.save(base)
    (base / CONFIG).write_text(json.dumps({"model": settings.model_dump(mode="json")}))
    write_folder(folder / "data", {"train": 200, "dev": 40, "test": 60})
    return folder


def run(home, *arguments):
    same = {name: value for name, value in SMALL.items() if name not in ("model", "schedule")}
    data = {split: str(home / "data" / f"{split}.csv") for split in ("train", "dev", "test")}
    values = {
        **same,
        "name": "reviews",
        "task": {"kind": "classification", **data},
        "epochs": 3,
        "grid": {"learning_rates": [1e-2], "seeds": [3, 4]},
        "baselines": {"lstm": LSTM},
    }
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "jobs" / "results.py"), f"--docs={home / 'docs'}"),
            *(f"{name}={json.dumps(value)}" for name, value in values.items()),
            *arguments,
        ],
        env={**os.environ, "GLM_DIST_HOME": str(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


@pytest.mark.ray
@pytest.mark.slow
def test_all_arms_of_a_task_are_in_the_table(home):
    done = run(home)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    entry = json.loads((home / "docs" / "tasks.json").read_text())["reviews"]
    assert set(entry["arms"]) == {"majority", "tfidf", "lstm", "scratch", "glm"}
    assert min(entry["score"], entry["scratch"]) > 90
    assert entry["majority"] == pytest.approx(50)
    assert len(entry["base"]) == 64
    assert f"glm          accuracy {entry['score']:.1f}" in done.stdout
    assert "| reviews | accuracy | 60 |" in (home / "docs" / "tasks.md").read_text()
    assert "seed 3" not in run(home).stdout
    again = json.loads((home / "docs" / "tasks.json").read_text())["reviews"]
    assert again["arms"] == entry["arms"]


def test_without_a_base_it_says_so(home):
    done = run(home, "init_from=runs/nothing")
    assert done.returncode == 2
    assert "runs/nothing" in done.stderr
