"""Runs of two ranks that tests disturb; importable from all tests of the jobs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from glm_dist.metrics.sinks import read_metrics

ROOT = Path(__file__).parents[2]
WORDS = "the list returns a number of items when the given value is not in a range".split()
TITLES = {"rank": "RayTrainWorker", "controller": "TrainController"}
CHECKPOINT_STEPS = 25
DEADLINE_SECONDS = 240


def run_job(home, name, *overrides, environment=os.environ, stdout=subprocess.DEVNULL):
    return subprocess.Popen(
        [sys.executable, f"jobs/{name}.py", *overrides],
        cwd=ROOT,
        env={**environment, "GLM_DIST_HOME": str(home)},
        stdout=stdout,
        stderr=subprocess.STDOUT if stdout == subprocess.PIPE else None,
        text=True,
    )


def prepare(home):
    """A dataset of seventeen words below the home."""
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(rng.choice(WORDS, size=80)) + "."}) for _ in range(2000)]
    (home / "words.jsonl").write_text("\n".join(lines))
    source = f"sources=[{{name: words, path: {home / 'words.jsonl'}}}]"
    job = run_job(home, "prepare_data", "output=data/words", source, "tokenizer.vocab_size=320")
    assert job.wait() == 0


@dataclass
class Kill:
    """One of them, and what it cost."""

    kind: str
    reached: int
    """Steps done when it came."""
    next_attempt: int
    """Number of the first attempt after it."""
    resumed: int = 0
    """Where that one went on from."""
    seconds: float | None = None
    """Until the next step was done; None where another kill came before."""

    @property
    def redone(self):
        """Steps done twice; ranks that outlive their driver may have saved after our look."""
        return max(0, self.reached - self.resumed)


class Victim:
    """A run of two ranks that is shot at."""

    def __init__(
        self, home, name, num_steps, batch=4, workers=2, more_workers=None, waits=True, **how
    ):
        workers = {"num_workers": workers, **(more_workers or {})}
        checkpoints = {"every_steps": CHECKPOINT_STEPS, "asynchronous": not waits}
        self.folder = home / "runs" / name
        self.seen: set[psutil.Process] = set()
        self.job = run_job(
            home,
            "pretrain",
            f"name={name}",
            "dataset=data/words",
            f"duration={{num_steps: {num_steps}}}",
            f"batch={{global_batch_size: {batch}, micro_batch_size: 2}}",
            f"workers={json.dumps(workers)}",
            "rows.sequence_length=64",
            "model={preset: null, num_layers: 1, hidden_size: 32, num_heads: 2}",
            "engine={zero_stage: 2, dtype: float32}",
            "evaluation={every_steps: 0, num_rows: 0}",
            f"checkpoints={json.dumps(checkpoints)}",
            "log_every_steps=1",
            "sinks={wandb: off, tensorboard: false}",
            **how,
        )

    def losses(self):
        """By step; None for steps that were left out, as outliers of these tiny batches are."""
        path = self.folder / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        return {line["step"]: line.get("loss") for line in lines if "tokens" in line}

    @property
    def step(self):
        return max(self.losses(), default=0)

    def attempts(self):
        paths = sorted((self.folder / "attempts").glob("attempt-*.json"))
        return [json.loads(path.read_text()) for path in paths]

    def journal(self):
        lines = (self.folder / "journal.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def saved_step(self):
        """Of the newest checkpoint."""
        names = [path.name for path in self.folder.glob("checkpoint-*") if "." not in path.name]
        return max((int(name.removeprefix("checkpoint-")) for name in names), default=0)

    def wait_for(self, condition):
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline
            assert self.job.poll() is None, "the run has ended"
            time.sleep(0.05)

    def processes(self, kind):
        """Of this run's own tree."""
        children = psutil.Process(self.job.pid).children(recursive=True)
        self.seen.update(children)
        if kind == "driver":
            return [child for child in children if child.ppid() == self.job.pid]
        return [child for child in children if TITLES[kind] in title(child)]

    def kill(self, kind, rng):
        """The kill, once there is something to be killed."""
        self.wait_for(lambda: self.processes(kind))
        num_attempts = len(self.attempts())
        victim = rng.choice(self.processes(kind))
        os.kill(victim.pid, signal.SIGKILL)
        return Kill(kind, self.step, num_attempts)

    def recover(self, kill):
        """Wait until a step is done in a new attempt, and fill in how long that took."""
        start = time.monotonic()
        self.wait_for(lambda: len(self.attempts()) > kill.next_attempt)
        resumed = self.attempts()[-1]["state"]["step"]
        decided = (self.folder / "attempts").stat().st_mtime
        metrics = self.folder / "metrics.jsonl"
        self.wait_for(
            lambda: metrics.exists() and metrics.stat().st_mtime > decided and self.step > resumed
        )
        kill.seconds = time.monotonic() - start


def title(process):
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
