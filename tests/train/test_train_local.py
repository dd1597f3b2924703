"""The loop without ray: one process, an engine of plain torch, rows straight from a builder."""

import errno
import json
import math
import shutil
import time

import pytest
import torch
from train_scenarios import KilledError, Runner, make_dataset, make_settings

from glm_dist.engine import Catalogue, build_engine, catalogue
from glm_dist.errors import CheckpointError, DataError
from glm_dist.metrics.provenance import provenance
from glm_dist.train import worker
from glm_dist.train.attempt import claim_run_folder, decide_attempt
from glm_dist.train.report import write_report
from glm_dist.train.schedule import learning_rate
from glm_dist.train.settings import PretrainSettings, ScheduleSettings


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    runner = Runner(dataset, make_settings(dataset), tmp_path_factory.mktemp("run"))
    runner.run()
    return runner


def test_training_lowers_the_loss_and_leaves_a_model_and_a_report(undisturbed, dataset):
    losses = undisturbed.losses()
    assert list(losses) == list(range(1, 13))
    assert losses[12] < losses[1]
    assert (undisturbed.folder / "model" / "model.safetensors").exists()
    summary = write_report(undisturbed.folder, undisturbed.settings, dataset, provenance())
    assert summary["steps"] == 12
    assert 0 < summary["heldout/unigram_entropy"] < 6
    assert summary["heldout/loss_shuffled_context"] > 0
    assert (undisturbed.folder / "loss.png").stat().st_size > 5000
    assert json.loads((undisturbed.folder / "summary.json").read_text()) == summary


@pytest.mark.parametrize("break_at", [1, 5, 11])
def test_a_killed_run_resumes_to_the_losses_it_would_have_had(
    undisturbed, dataset, tmp_path, break_at
):
    runner = Runner(dataset, make_settings(dataset), tmp_path)
    with pytest.raises(KilledError):
        runner.run(break_at=break_at)
    state = runner.run()
    assert state.step == 12
    assert runner.losses() == undisturbed.losses()


def test_a_stop_saves_at_once_and_the_next_launch_goes_on(undisturbed, dataset, tmp_path):
    runner = Runner(dataset, make_settings(dataset), tmp_path)
    stopped = runner.run(stop_at=5)
    assert stopped.step < 12
    assert stopped.step % 4
    runner.run()
    assert runner.losses() == undisturbed.losses()


def test_wrong_rows_stop_the_run_before_they_are_trained_on(dataset, tmp_path):
    runner = Runner(dataset, make_settings(dataset), tmp_path)
    right = runner.batches
    runner.batches = lambda state: (
        {**rows, "row_ids": rows["row_ids"] + 1} for rows in right(state)
    )
    with pytest.raises(DataError, match="the order says"):
        runner.run()
    assert not runner.folder.joinpath("metrics.jsonl").exists() or not runner.losses()


def test_a_run_folder_of_another_config_is_refused_by_the_settings_that_differ(
    undisturbed, dataset
):
    other = make_settings(dataset, seed=5, schedule={"peak_learning_rate": 1e-5})
    with pytest.raises(CheckpointError) as caught:
        claim_run_folder(undisturbed.folder, other)
    assert "seed: 1234 there, 5 now" in str(caught.value)
    assert "schedule.peak_learning_rate" in str(caught.value)
    claim_run_folder(undisturbed.folder, make_settings(dataset, workers={"num_workers": 2}))


def test_checkpoints_of_other_data_are_refused(undisturbed, dataset, tmp_path):
    shutil.copytree(undisturbed.folder, tmp_path / "copy")
    prints = {**undisturbed.prints, "dataset": "another"}
    with pytest.raises(CheckpointError, match="another dataset"):
        decide_attempt(tmp_path / "copy", undisturbed.settings, prints, 1)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_the_learning_rate_rises_stays_positive_and_ends_where_it_should(kind):
    settings = ScheduleSettings(kind=kind, peak_learning_rate=1.0, warmup_share=0.1)
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[:10] == sorted(rates[:10])
    assert min(rates) > 0
    assert rates[-1] == pytest.approx(1.0 if kind == "constant" else 0.1, abs=0.05)


def test_all_problems_of_a_run_are_named_at_once():
    with pytest.raises(
        ValueError, match=r"exactly one.*global_batch_size.*multiple of log"
    ) as caught:
        PretrainSettings(
            duration={"num_steps": 1, "num_tokens": 1},
            batch={"global_batch_size": 10, "micro_batch_size": 4},
            checkpoints={"every_steps": 7},
        )
    assert "use a multiple of 8, e.g. 16" in str(caught.value)


@pytest.mark.parametrize("poisoned", [0, 5, 11])
def test_one_poisoned_step_is_left_out_and_costs_no_other(
    dataset, tmp_path, monkeypatch, poisoned, faults
):
    """In warm-up, in the middle, and last: the weights are as if the step had not been."""
    weights = {}

    def build_watched(*arguments):
        engine = build_engine(*arguments)
        plain, calls = engine.backward, iter(range(1000))

        def backward(batch, scale, is_last):
            step = next(calls) // 2  # two micro-batches a step
            weights[step] = torch.cat([p.detach().flatten() for p in engine._weights])
            return plain(batch, math.nan if step == poisoned else scale, is_last)

        engine.backward = backward
        return engine

    monkeypatch.setattr(worker, "build_engine", build_watched)
    runner = Runner(dataset, make_settings(dataset), tmp_path)
    assert runner.run().step == 12
    assert Catalogue(tmp_path).newest().state["train"]["discarded_steps"] == 1
    changed = [step for step in range(11) if not torch.equal(weights[step], weights[step + 1])]
    assert changed == [step for step in range(11) if step != poisoned]
    assert all(map(math.isfinite, runner.losses().values()))
    faults.add("T9", 1, 1, steps_left_out_each=1)


class FullDisk:
    """Refuses checkpoints while it is full."""

    def __init__(self, monkeypatch, refused):
        self.saves = 0
        write = catalogue.save_slices

        def write_or_refuse(*arguments):
            self.saves += 1
            if self.saves in refused:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(*arguments)

        monkeypatch.setattr(catalogue, "save_slices", write_or_refuse)


def test_a_full_disk_is_outlived_and_the_older_checkpoint_stays(
    undisturbed, dataset, tmp_path, monkeypatch, caplog
):
    FullDisk(monkeypatch, refused={2})
    runner = Runner(dataset, make_settings(dataset), tmp_path)
    assert runner.run().step == 12
    assert runner.losses() == undisturbed.losses()
    assert "No space left on device" in caplog.text
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == [
        "checkpoint-00000004",
        "checkpoint-00000012",
    ]


def test_too_many_missed_checkpoints_end_the_run(dataset, tmp_path, monkeypatch):
    FullDisk(monkeypatch, refused={2, 3})
    settings = make_settings(dataset, checkpoints={"every_steps": 4, "max_missed": 1})
    runner = Runner(dataset, settings, tmp_path)
    with pytest.raises(CheckpointError, match="make room"):
        runner.run()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000004"]


def test_an_attempt_that_was_taken_over_commits_nothing_more(dataset, tmp_path):
    checkpoints = {"every_steps": 4, "asynchronous": False}  # the first is there when it is due
    runner = Runner(dataset, make_settings(dataset, checkpoints=checkpoints), tmp_path)
    plain = runner.batches

    def batches(state):
        for number, rows in enumerate(plain(state)):
            if number == 10:  # after the first checkpoint another driver decides on an attempt
                decide_attempt(tmp_path, runner.settings, runner.prints, 1)
            yield rows

    runner.batches = batches
    with pytest.raises(CheckpointError, match="a later attempt has taken this run over"):
        runner.run()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000004"]


def test_training_goes_on_while_a_checkpoint_is_written(
    undisturbed, dataset, tmp_path, monkeypatch
):
    """What is written is the state of its step, however far training has come meanwhile."""
    write, seen = catalogue.save_slices, []

    def write_later(path, *arguments):
        deadline = time.monotonic() + 20
        while path.parent.name.startswith("checkpoint-00000004") and time.monotonic() < deadline:
            if max(runner.losses(), default=0) >= 7:
                seen.append("step 7 was done before")
                break
            time.sleep(0.01)
        return write(path, *arguments)

    monkeypatch.setattr(catalogue, "save_slices", write_later)
    runner = Runner(dataset, make_settings(dataset), tmp_path)
    with pytest.raises(KilledError):
        runner.run(break_at=7)
    assert wait_for(lambda: Catalogue(tmp_path).newest())
    assert seen
    runner.run()
    assert runner.losses() == undisturbed.losses()


def wait_for(find):
    deadline = time.monotonic() + 20
    while not find() and time.monotonic() < deadline:
        time.sleep(0.05)
    return find()
