"""The field's starting points as a user runs them, on tables as users have them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_scenarios import reviews

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "jobs" / "configs" / "seed_classifier.yaml"
SMALL = "baselines.lstm={embedding_size: 16, hidden_size: 16, learning_rate: 0.02, num_epochs: 4}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs the job over a folder of reviews; its home is the folder above."""
    home = tmp_path_factory.mktemp("home")
    data = home / "reviews"
    data.mkdir()
    for number, (name, count) in enumerate({"train": 200, "test": 60}.items()):
        lines = ["stars,review", *(f"{label},{text}" for text, label in reviews(count, number))]
        (data / f"{name}.csv").write_text("\n".join(lines) + "\n")

    def job(*arguments):
        done = subprocess.run(
            [sys.executable, str(ROOT / "jobs" / "baselines.py"), f"--data={data}", *arguments],
            env={**os.environ, "GLM_DIST_HOME": str(home)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        return home / "runs", done

    return job


def test_a_folder_of_tables_is_learnt_by_every_arm_and_reported_as_a_tuned_model_is(run):
    runs, done = run(f"--config={CONFIG}", "baselines.arms=[]", SMALL)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "epoch 4, loss" in done.stdout
    for arm, least in {"majority": 40, "tfidf": 95, "lstm": 95}.items():
        folder = runs / "seed_classifier" / "baselines" / arm
        kept = json.loads((folder / "scores.json").read_text())
        assert kept["arm"] == arm
        assert kept["scores"][0]["name"] == "accuracy"
        assert kept["scores"][0]["value"] >= least
        assert (
            kept["examples"] == len((folder / "predictions.jsonl").read_text().splitlines()) == 60
        )
        assert f"test         accuracy {kept['scores'][0]['value']:.1f}" in done.stdout


def test_an_arm_that_is_not_there_is_a_mistake_of_the_user(run):
    done = run("baselines.arms=[svm]")[1]
    assert done.returncode == 2
    assert "svm is no baseline of classification; it has majority, tfidf, lstm" in done.stderr
