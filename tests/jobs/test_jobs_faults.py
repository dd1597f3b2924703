"""The slow tier: a worker killed by SIGKILL at a seeded random moment, time and again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from glm_dist.metrics.sinks import read_metrics

ROOT = Path(__file__).parents[2]
WORDS = "the list returns a number of items when the given value is not in a range".split()
TRIALS = int(os.environ.get("GLM_DIST_FAULT_TRIALS", "10"))
NUM_STEPS, CHECKPOINT_STEPS = 40, 5
DEADLINE_SECONDS = 600
SMALL = [
    "dataset=data/words",
    f"duration={{num_steps: {NUM_STEPS}}}",
    "batch={global_batch_size: 16, micro_batch_size: 4}",
    "rows.sequence_length=128",
    "model={preset: null, num_layers: 2, hidden_size: 128, num_heads: 2}",
    "engine={zero_stage: 2, dtype: float32}",
    "evaluation={every_steps: 0, num_rows: 0}",
    f"checkpoints.every_steps={CHECKPOINT_STEPS}",
    "log_every_steps=1",
    "sinks={wandb: off, tensorboard: false}",
]
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(rng.choice(WORDS, size=80)) + "."}) for _ in range(2000)]
    (home / "words.jsonl").write_text("\n".join(lines))
    source = f"sources=[{{name: words, path: {home / 'words.jsonl'}}}]"
    run_job(home, "prepare_data", "output=data/words", source, "tokenizer.vocab_size=320").wait()
    return home


def run_job(home, name, *overrides):
    return subprocess.Popen(
        [sys.executable, f"jobs/{name}.py", *overrides],
        cwd=ROOT,
        env={**os.environ, "GLM_DIST_HOME": str(home)},
        stdout=subprocess.DEVNULL,
    )


def losses(home, name):
    path = home / "runs" / name / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else []
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def training_workers(job):
    """Processes of this job's own tree that are ranks of the training group."""
    tree = psutil.Process(job.pid).children(recursive=True)
    return [process for process in tree if "RayTrainWorker" in " ".join(process.cmdline())]


@pytest.fixture(scope="module")
def undisturbed(home):
    assert run_job(home, "pretrain", "name=undisturbed", *SMALL).wait() == 0
    return losses(home, "undisturbed")


@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_killed_worker_costs_at_most_one_interval_and_no_loss_changes(home, undisturbed, trial):
    rng = random.Random(trial)
    name, kill_at = f"trial-{trial}", rng.randrange(1, NUM_STEPS - 1)
    job = run_job(home, "pretrain", f"name={name}", *SMALL)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while max(losses(home, name), default=0) < kill_at:
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.05)
    victim = rng.choice(training_workers(job))
    reached = max(losses(home, name))
    os.kill(victim.pid, signal.SIGKILL)
    assert job.wait(DEADLINE_SECONDS) == 0
    attempts = sorted((home / "runs" / name / "attempts").glob("attempt-*.json"))
    resumed_at = json.loads(attempts[-1].read_text())["state"]["step"]
    assert len(attempts) == 2
    assert reached - resumed_at <= CHECKPOINT_STEPS + 2  # what it did between our look and the kill
    assert losses(home, name) == undisturbed
