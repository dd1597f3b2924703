"""The loop without ray: one process, an engine of plain torch, rows straight from a builder."""

import json
import shutil

import pytest
from train_scenarios import KilledError, Runner, make_dataset, make_settings

from glm_dist.errors import CheckpointError, DataError
from glm_dist.metrics.provenance import provenance
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
