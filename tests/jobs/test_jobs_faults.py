"""SIGKILL at seeded random moments: ranks, the driver, the controller of Ray Train, time and again.

The slow tier kills fifty times (GLM_DIST_FAULT_TRIALS changes that), the fast one a rank and a
driver. Whatever is killed, the run goes on by itself, with the losses of an undisturbed one.
"""

import json
import os
import random
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import psutil
import pytest
from faults import FOLDER
from matplotlib.figure import Figure
from victims import CHECKPOINT_STEPS, DEADLINE_SECONDS, Victim, prepare

TRIALS = int(os.environ.get("GLM_DIST_FAULT_TRIALS", "50"))
KINDS = ("rank", "rank", "rank", "controller", "driver")
"""Ranks are most of a cluster's processes, so most deaths are theirs."""
KILLS_PER_RUN, STEPS_PER_KILL = 10, 100
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    prepare(home)
    return home


def shoot(home, undisturbed, name, kinds, rng, waits=True):
    """Kill what `kinds` says, one after the other; the run ends as if nothing had been.

    Returns its kills and its losses.
    """
    victim = Victim(home, name, num_steps=len(undisturbed), waits=waits)
    kills = []
    victim.wait_for(lambda: victim.step > 0)
    for kind in kinds:
        kill = victim.kill(kind, rng)
        kills.append(kill)
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0, 8))  # the next one comes while the run is still starting
            continue
        victim.recover(kill)
        goal = victim.step + rng.randrange(STEPS_PER_KILL - CHECKPOINT_STEPS)
        victim.wait_for(lambda goal=goal: victim.step >= goal)
    assert victim.job.wait(DEADLINE_SECONDS) == 0
    assert victim.losses() == undisturbed
    attempts = victim.attempts()
    for kill in kills:
        kill.resumed = attempts[kill.next_attempt]["state"]["step"]
    assert not list(victim.folder.glob("*damaged*"))
    gone, alive = psutil.wait_procs(victim.seen, timeout=DEADLINE_SECONDS)
    assert not alive  # agents of a Ray whose driver was killed notice after a while
    return kills, victim.losses()


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


PLAN_IDS = {"rank": "T1", "controller": "T4-controller", "driver": "T4-driver"}


def check(kills, faults, allowed=CHECKPOINT_STEPS):
    """No kill costs more steps than allowed; print and record what each kind cost."""
    assert all(kill.redone <= allowed for kill in kills)
    by_kind = defaultdict(list)
    for kill in kills:
        by_kind[kill.kind].append(kill)
    for kind, group in by_kind.items():
        seconds = [kill.seconds for kill in group if kill.seconds is not None]
        redone = [kill.redone for kill in group]
        middle = f"{median(seconds):.1f} s" if seconds else "not measured"
        counts = {"interval": CHECKPOINT_STEPS, "most_redone": max(redone)}
        faults.add(PLAN_IDS[kind], len(group), len(group), **counts, median_restart=middle)
        print(f"{kind}: {len(group)} kills, {counts}, median restart {middle}")


def test_a_killed_rank_and_a_killed_driver_change_no_loss(home, undisturbed, faults):
    """Of a run that saves in the background: a checkpoint may be lost while it is written."""
    kinds = ["rank", "driver"]
    kills, _ = shoot(home, undisturbed(300), "each", kinds, random.Random(99), waits=False)
    check(kills, faults, allowed=2 * CHECKPOINT_STEPS)


COLORS = {"rank": "#c44e52", "controller": "#dd8452", "driver": "#8172b3"}


def draw(path, undisturbed, shot_at, kills):
    """Both curves, and where the kills came."""
    figure = Figure(figsize=(9, 4.5))
    axes = figure.subplots()
    for losses, width, color, label in (
        (undisturbed, 4, "#b0b0b0", "undisturbed"),
        (shot_at, 0.8, "black", f"with {len(kills)} kills"),
    ):
        pairs = [(step, loss) for step, loss in losses.items() if loss is not None]
        axes.plot(*zip(*pairs, strict=True), linewidth=width, color=color, label=label)
    for kind, color in COLORS.items():
        for number, kill in enumerate(kill for kill in kills if kill.kind == kind):
            label = f"SIGKILL of the {kind}" if number == 0 else None
            axes.axvline(kill.reached, color=color, linestyle=":", label=label)
    axes.set(
        title="The same run, undisturbed and shot at: losses equal to the bit",
        xlabel="optimizer step",
        ylabel="nats a token",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")


@pytest.mark.slow
def test_kills_at_random_times_change_no_loss_and_cost_at_most_one_interval(
    home, undisturbed, faults
):
    rng = random.Random(0)
    kinds = [rng.choice(KINDS) for _ in range(TRIALS)]
    kills = []
    for start in range(0, TRIALS, KILLS_PER_RUN):
        part = kinds[start : start + KILLS_PER_RUN]
        steps = (KILLS_PER_RUN + 1) * STEPS_PER_KILL
        found, losses = shoot(home, undisturbed(steps), f"shot-{start}", part, rng)
        kills += found
        if FOLDER and start == 0:
            draw(Path(FOLDER) / "pictures" / "kills.png", undisturbed(steps), losses, found)
        print(f"{len(kills)} of {TRIALS} kills", flush=True)
    check(kills, faults)
    record = Path(os.environ.get("GLM_DIST_FAULT_RECORD", home / "kills.json"))
    record.write_text(json.dumps([vars(kill) for kill in kills], indent=1))
