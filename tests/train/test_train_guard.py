"""Trouble in the numbers: what costs one step, what a rewind, and what nothing at all."""

import json
import math
import multiprocessing
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from killing import dying_before_operation
from train_scenarios import Runner, make_dataset, make_settings

from glm_dist.data.shards import TokenDataset
from glm_dist.engine import Catalogue
from glm_dist.errors import LaunchError
from glm_dist.train import attempt
from glm_dist.train.guard import Figures, Guard, GuardMemory, Verdict
from glm_dist.train.settings import GuardSettings
from glm_dist.train.state import Ending

STEPS, BATCH = 160, 8


def verdicts(losses, norms=None, **settings):
    guard = Guard(GuardSettings(**settings), GuardMemory())
    norms = norms or [1.0] * len(losses)
    return [
        guard.judge(step, step * BATCH, Figures(*pair))
        for step, pair in enumerate(zip(losses, norms, strict=True))
    ]


def noisy(length, start=8.0, end=4.0, noise=0.04, seed=0):
    """A curve that falls as losses do."""
    rng = np.random.default_rng(seed)
    curve = end + (start - end) * np.exp(-np.arange(length) / (length / 6))
    return (curve * (1 + noise * rng.standard_normal(length))).tolist()


def test_a_healthy_curve_is_left_alone():
    norms = np.exp(0.25 * np.random.default_rng(1).standard_normal(3000)).tolist()
    assert set(verdicts(noisy(3000), norms)) == {Verdict.APPLY}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 5, 300])
def test_what_is_not_finite_costs_one_step_from_the_first_step_on(value, at):
    for which in ("loss", "norm"):
        losses, norms = noisy(400), [1.0] * 400
        (losses if which == "loss" else norms)[at] = value
        found = verdicts(losses, norms)
        assert found[at] is Verdict.DISCARD
        assert [i for i, verdict in enumerate(found) if verdict is not Verdict.APPLY] == [at]


@pytest.mark.parametrize("which", ["loss", "norm"])
def test_an_outlier_costs_one_step_and_does_not_spoil_the_window(which):
    losses, norms = noisy(400), noisy(400, 1.2, 1.0, 0.1, seed=3)
    values = losses if which == "loss" else norms
    values[300] *= 50
    clean = GuardMemory()
    guard = Guard(GuardSettings(), clean)
    pairs = enumerate(zip(losses, norms, strict=True))
    found = [guard.judge(i, 0, Figures(*pair)) for i, pair in pairs]
    assert [i for i, verdict in enumerate(found) if verdict is not Verdict.APPLY] == [300]
    assert max(clean.losses) < 10
    assert max(clean.grad_norms) < 3


def test_a_spike_that_lasts_is_a_rewind_at_its_third_step():
    losses = noisy(200) + [30.0] * 3
    found = verdicts(losses)
    assert found[200:] == [Verdict.DISCARD, Verdict.DISCARD, Verdict.REWIND]


def test_outliers_can_be_let_through_but_not_what_is_not_finite():
    found = verdicts([*noisy(200), 400.0, math.nan], outlier_factor=0)
    assert found[200:] == [Verdict.APPLY, Verdict.DISCARD]


def test_a_memory_read_back_decides_alike():
    losses = [*noisy(200), 30.0]
    memory = GuardMemory()
    guard = Guard(GuardSettings(), memory)
    for step, loss in enumerate(losses):
        guard.judge(step, step * BATCH, Figures(loss, 1.0))
    kept = GuardMemory(**json.loads(json.dumps(vars(memory))))
    assert kept.num_bad == 1
    for loss in (30.0, 4.0):
        again = Guard(GuardSettings(), kept).judge(201, 201 * BATCH, Figures(loss, 1.0))
        assert again is guard.judge(201, 201 * BATCH, Figures(loss, 1.0))


def overflows(steps, num_steps=200):
    """Verdicts of a healthy curve whose gradient overflows at some steps."""
    guard = Guard(GuardSettings(), GuardMemory())
    found = []
    for step, loss in enumerate(noisy(num_steps)):
        norm = math.inf if step in steps else 1.0
        found.append(guard.judge(step, step * BATCH, Figures(loss, norm, loss_scale=1024.0)))
    return found, guard._memory


def test_the_search_for_a_loss_scale_and_an_overflow_now_and_then_cost_their_steps_alone():
    steps = [*range(10), 60, 90, 120, 130, 150]
    found, _ = overflows(steps)
    assert [i for i, verdict in enumerate(found) if verdict is not Verdict.APPLY] == steps
    assert Verdict.REWIND not in found


def test_a_loss_scale_that_collapses_is_a_rewind_to_before_its_first_overflow():
    found, memory = overflows([100, 104, 110, 118], num_steps=119)
    assert found[118] is Verdict.REWIND
    assert found.count(Verdict.REWIND) == 1
    assert memory.first_bad == (100, 100 * BATCH)


@pytest.mark.parametrize("figures", [Figures(math.nan, math.inf, 64.0), Figures(4.0, math.inf)])
def test_what_no_loss_scale_explains_is_a_bad_step_as_ever(figures):
    guard = Guard(GuardSettings(), GuardMemory())
    verdicts = [guard.judge(step, 0, figures) for step in range(3)]
    assert verdicts == [Verdict.DISCARD, Verdict.DISCARD, Verdict.REWIND]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


class Poisoned(Runner):
    """A runner whose rows of some range carry targets drawn at random."""

    def __init__(self, dataset, folder, poisoned, **guard):
        settings = make_settings(
            dataset,
            duration={"num_steps": STEPS},
            schedule={"peak_learning_rate": 3e-3},
            guard={"skip_steps": 40, "window_steps": 64, **guard},
            evaluation={"every_steps": 0, "num_rows": 16},
            checkpoints={"every_steps": 10},
        )
        self.poisoned = poisoned
        self.drawn = np.random.default_rng(5)
        super().__init__(dataset, settings, folder)

    def batches(self, state):
        for rows in super().batches(state):
            bad = np.isin(rows["row_ids"], self.poisoned)
            targets = rows["targets"].copy()
            targets[bad] = self.drawn.integers(0, 300, targets[bad].shape)
            yield {**rows, "targets": targets}

    def through(self):
        """Attempts until the run has come to its end."""
        while (ending := self.run()).kind == "rewind":
            self.endings = [*getattr(self, "endings", []), ending]
        return ending

    def heldout_loss(self):
        return json.loads((self.folder / "final.json").read_text())["heldout/loss"]


def rows_of_steps(first, last):
    return range(first * BATCH, last * BATCH)


def test_thirty_poisoned_batches_are_found_in_three_steps_and_left_out(dataset, tmp_path, faults):
    clean = Poisoned(dataset, tmp_path / "clean", [])
    assert clean.through().kind == "finished"
    runner = Poisoned(dataset, tmp_path / "poisoned", rows_of_steps(85, 115))
    assert runner.through().kind == "finished"

    (rewind,) = (ending.rewind for ending in runner.endings)
    assert rewind.above_step == 85
    assert rewind.skip == (85 * BATCH, 125 * BATCH)
    assert runner.endings[0].step == 88
    seen = runner.rows_seen()
    assert seen[84] == list(rows_of_steps(84, 85))
    assert seen[85] == list(rows_of_steps(125, 126))
    assert runner.heldout_loss() == pytest.approx(clean.heldout_loss(), rel=0.01)
    events = [json.loads(line) for line in (runner.folder / "events.jsonl").open()]
    discarded = [event for event in events if event["event"] == "discarded"]
    assert [event["step"] for event in discarded] == [85, 86, 87]
    assert discarded[0]["rows"] == list(rows_of_steps(85, 86))
    difference = runner.heldout_loss() / clean.heldout_loss() - 1
    faults.add("T10", 1, 1, found_after_steps=3, heldout_loss_differs_by=f"{difference:+.2%}")


def test_one_bad_step_costs_that_step_and_no_rewind(dataset, tmp_path):
    runner = Poisoned(dataset, tmp_path, rows_of_steps(100, 101))
    assert runner.through().kind == "finished"
    assert attempt.read_attempts(tmp_path)[-1].number == 0
    state = Catalogue(tmp_path).newest().state["train"]
    assert (state["step"], state["discarded_steps"]) == (STEPS, 1)


def test_trouble_without_end_gives_up_after_the_rewinds_it_may_take(dataset, tmp_path):
    runner = Poisoned(dataset, tmp_path, rows_of_steps(85, 400), max_rewinds=2, skip_steps=20)
    with pytest.raises(LaunchError, match=r"after 2 rewinds \(guard.max_rewinds 2\)"):
        runner.through()
    assert len(runner.endings) == 3


@pytest.mark.parametrize("killed", ["before the record", "after the record", "while renaming"])
def test_a_driver_killed_around_a_rewind_never_resumes_what_was_abandoned(
    dataset, tmp_path, monkeypatch, killed
):
    """Later checkpoints exist here, as after a spike that took longer to show."""
    runner = Poisoned(dataset, tmp_path, rows_of_steps(85, 115))
    ending = runner.run()
    assert ending.rewind.above_step == 85
    decided = vars(ending.rewind) | {"above_step": 75}
    attempt.write_ending(tmp_path, 0, Ending(88, "rewind", attempt.Rewind(**decided)))

    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if killed == "before the record":
            patch.setattr(Catalogue, "retire", die)
        elif killed == "after the record":
            patch.setattr(Catalogue, "_sweep_retired", lambda self: None)
            patch.setattr(attempt, "_create", die)
        else:
            patch.setattr("glm_dist.engine.store.rename_folder", die)
        with pytest.raises(KeyboardInterrupt):
            runner.run()
    resumed = attempt.decide_attempt(tmp_path, runner.settings, runner.prints, 1)
    assert resumed.train_state.step == 70
    assert resumed.train_state.skipped == [(85 * BATCH, 125 * BATCH)]
    assert len([line for line in Catalogue(tmp_path).lineage() if "skip" in line]) == 1
    assert not (tmp_path / "checkpoint-00000080").exists()


TRIALS = 20


@pytest.mark.slow
def test_twenty_kills_around_a_rewind_never_bring_back_the_abandoned_branch(
    dataset, tmp_path, faults
):
    """Each in a process of its own, before a random file operation from the decision on."""
    prepared = Poisoned(dataset, tmp_path / "prepared", rows_of_steps(85, 115))
    prepared.run()
    rewind = attempt.Rewind(75, (75 * BATCH, 125 * BATCH))
    attempt.write_ending(prepared.folder, 0, Ending(88, "rewind", rewind))
    newest = Catalogue(prepared.folder).newest()
    assert newest.step == 80
    rng, killed = random.Random(0), 0
    for trial in range(TRIALS):
        folder = tmp_path / f"trial-{trial}"
        shutil.copytree(prepared.folder, folder)
        number = rng.randrange(120)
        process = multiprocessing.get_context("spawn").Process(
            target=_go_on, args=(str(dataset.folder), str(folder), number)
        )
        process.start()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        resumed = attempt.decide_attempt(folder, prepared.settings, prepared.prints, 1)
        assert resumed.open_checkpoint().attempt != newest.attempt, f"trial {trial}"
        assert resumed.train_state.skipped == [rewind.skip]
        assert len([line for line in Catalogue(folder).lineage() if "skip" in line]) == 1
    print(f"{killed} kills around a rewind; 0 resumed the abandoned branch")
    assert killed > TRIALS / 2
    faults.add("T10-killed", killed, killed)


def _go_on(dataset_folder, folder, number):
    runner = Poisoned(TokenDataset.open(dataset_folder), Path(folder), rows_of_steps(85, 115))
    act = dying_before_operation(number, Path(folder), runner.run)
    act()
