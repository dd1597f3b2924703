"""SIGKILL at seeded random moments: ranks, the driver, the controller of Ray Train, time and again.

The slow tier kills fifty times (GLM_DIST_FAULT_TRIALS changes that), the fast one once of each
kind. Whatever is killed, the run goes on by itself and its losses are those of an undisturbed one.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pytest

from glm_dist.metrics.sinks import read_metrics

ROOT = Path(__file__).parents[2]
WORDS = "the list returns a number of items when the given value is not in a range".split()
TRIALS = int(os.environ.get("GLM_DIST_FAULT_TRIALS", "50"))
KINDS = ("rank", "rank", "rank", "controller", "driver")
"""Ranks are most of a cluster's processes, so most deaths are theirs."""
TITLES = {"rank": "RayTrainWorker", "controller": "TrainController"}
KILLS_PER_RUN, STEPS_PER_KILL, CHECKPOINT_STEPS = 10, 150, 25
DEADLINE_SECONDS = 240
pytestmark = pytest.mark.ray


def run_job(home, name, *overrides):
    return subprocess.Popen(
        [sys.executable, f"jobs/{name}.py", *overrides],
        cwd=ROOT,
        env={**os.environ, "GLM_DIST_HOME": str(home)},
        stdout=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(rng.choice(WORDS, size=80)) + "."}) for _ in range(2000)]
    (home / "words.jsonl").write_text("\n".join(lines))
    source = f"sources=[{{name: words, path: {home / 'words.jsonl'}}}]"
    run_job(home, "prepare_data", "output=data/words", source, "tokenizer.vocab_size=320").wait()
    return home


@dataclass
class Kill:
    """One of them, and what it cost."""

    kind: str
    reached: int
    """Steps done when it came."""
    resumed: int = 0
    seconds: float | None = None
    """Until the next step was done; None where another kill came before."""

    @property
    def redone(self):
        """Steps done twice; ranks that outlive their driver may have saved after our look."""
        return max(0, self.reached - self.resumed)


class Victim:
    """A run of two ranks that is shot at."""

    def __init__(self, home, name, num_steps):
        self.folder = home / "runs" / name
        self.seen: set[psutil.Process] = set()
        self.job = run_job(
            home,
            "pretrain",
            f"name={name}",
            "dataset=data/words",
            f"duration={{num_steps: {num_steps}}}",
            "batch={global_batch_size: 4, micro_batch_size: 2}",
            "rows.sequence_length=64",
            "model={preset: null, num_layers: 1, hidden_size: 32, num_heads: 2}",
            "engine={zero_stage: 2, dtype: float32}",
            "evaluation={every_steps: 0, num_rows: 0}",
            f"checkpoints.every_steps={CHECKPOINT_STEPS}",
            "log_every_steps=1",
            "sinks={wandb: off, tensorboard: false}",
        )

    def losses(self):
        path = self.folder / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    @property
    def step(self):
        return max(self.losses(), default=0)

    def attempts(self):
        paths = sorted((self.folder / "attempts").glob("attempt-*.json"))
        return [json.loads(path.read_text()) for path in paths]

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
        victim = rng.choice(self.processes(kind))
        os.kill(victim.pid, signal.SIGKILL)
        return Kill(kind, self.step)

    def recover(self, kill, num_attempts):
        """Wait until a step is done in a new attempt, and fill in what the kill cost."""
        start = time.monotonic()
        self.wait_for(lambda: len(self.attempts()) > num_attempts)
        kill.resumed = self.attempts()[-1]["state"]["step"]
        decided = (self.folder / "attempts").stat().st_mtime
        metrics = self.folder / "metrics.jsonl"
        self.wait_for(
            lambda: (
                metrics.exists() and metrics.stat().st_mtime > decided and self.step > kill.resumed
            )
        )
        kill.seconds = time.monotonic() - start


def title(process):
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def shoot(home, undisturbed, name, kinds, rng):
    """Kill what `kinds` says, one after the other, and see the run through."""
    victim = Victim(home, name, num_steps=len(undisturbed))
    kills = []
    victim.wait_for(lambda: victim.step > 0)
    for kind in kinds:
        num_attempts = len(victim.attempts())
        kill = victim.kill(kind, rng)
        kills.append(kill)
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0, 8))  # the next one comes while the run is still starting
            kill.resumed = victim.attempts()[-1]["state"]["step"]
            continue
        victim.recover(kill, num_attempts)
        time.sleep(rng.uniform(0, 1.5))
    assert victim.job.wait(DEADLINE_SECONDS) == 0
    assert victim.losses() == undisturbed
    assert not list(victim.folder.glob("*damaged*"))
    gone, alive = psutil.wait_procs(victim.seen, timeout=15)
    assert not alive
    return kills


@pytest.fixture(scope="module")
def undisturbed(home):
    """Losses by the number of steps."""
    found = {}

    def losses(num_steps):
        if num_steps not in found:
            victim = Victim(home, f"undisturbed-{num_steps}", num_steps)
            assert victim.job.wait(DEADLINE_SECONDS) == 0
            found[num_steps] = victim.losses()
            assert len(found[num_steps]) == num_steps
        return found[num_steps]

    return losses


def check(kills):
    """No kill costs more than one checkpoint interval; print what each kind cost."""
    assert all(kill.redone <= CHECKPOINT_STEPS for kill in kills)
    by_kind = defaultdict(list)
    for kill in kills:
        by_kind[kill.kind].append(kill)
    for kind, group in by_kind.items():
        seconds = [kill.seconds for kill in group if kill.seconds is not None]
        redone = [kill.redone for kill in group]
        middle = f"{median(seconds):.1f} s" if seconds else "not measured"
        print(
            f"{kind}: {len(group)} kills, most steps redone {max(redone)}, median restart {middle}"
        )


def test_one_kill_of_each_kind_changes_no_loss(home, undisturbed):
    rng = random.Random(99)
    kills = shoot(home, undisturbed(450), "each", ["rank", "driver", "controller"], rng)
    check(kills)


@pytest.mark.slow
def test_kills_at_random_times_change_no_loss_and_cost_at_most_one_interval(home, undisturbed):
    rng = random.Random(0)
    kinds = [rng.choice(KINDS) for _ in range(TRIALS)]
    kills = []
    for start in range(0, TRIALS, KILLS_PER_RUN):
        part = kinds[start : start + KILLS_PER_RUN]
        steps = (KILLS_PER_RUN + 1) * STEPS_PER_KILL
        kills += shoot(home, undisturbed(steps), f"shot-{start}", part, rng)
        print(f"{len(kills)} of {TRIALS} kills", flush=True)
    check(kills)
    record = Path(os.environ.get("GLM_DIST_FAULT_RECORD", home / "kills.json"))
    record.write_text(json.dumps([vars(kill) for kill in kills], indent=1))
