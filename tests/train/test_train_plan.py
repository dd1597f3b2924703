"""The plan of a run: hours from real steps, and none where they would not fit."""

import re

import pytest
import torch
from train_scenarios import make_dataset, make_settings

from glm_dist.train import probe
from glm_dist.train.plan import describe_hours, plan_memory
from glm_dist.train.probe import PROBE_STEPS, packed_steps, probe_steps


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


def test_a_probe_takes_real_steps_and_leaves_the_threads_as_they_were(dataset):
    before = torch.get_num_threads()
    seconds = probe_steps(make_settings(dataset), dataset)
    assert len(seconds) == PROBE_STEPS
    assert min(seconds) > 0
    assert torch.get_num_threads() == before


def test_a_probe_of_slow_steps_ends_early(dataset, monkeypatch):
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0)
    assert len(probe_steps(make_settings(dataset), dataset)) == probe.FEWEST_STEPS


def test_steps_hold_the_rows_asked_for_even_where_the_text_ends_before(dataset):
    settings = make_settings(dataset)
    num_rows = 2 * dataset.num_tokens("train") // settings.rows.sequence_length // 8 * 8
    steps = list(packed_steps(settings, dataset, num_rows // 8, rows_per_step=8))
    assert len(steps) == num_rows // 8
    assert {rows["tokens"].shape for step in steps for rows in step} == {(4, 64)}
    filled = sum(int((rows["segment_ids"] > 0).sum()) for step in steps for rows in step)
    assert filled > num_rows * 64 / 2


def test_hours_are_those_of_all_steps_at_the_median_of_the_warm_ones(dataset, monkeypatch):
    monkeypatch.setattr(probe, "probe_steps", lambda settings, dataset: [90.0, *[2.0] * 19])
    hours = describe_hours(make_settings(dataset, duration={"num_steps": 900}), dataset)
    assert re.match(r"0\.50, from 20 steps .*2\.000 s each", hours)
    assert "each of 1 rank(s)" in hours


def test_nothing_is_probed_that_would_not_fit_and_the_plan_says_why(dataset, monkeypatch):
    settings = make_settings(dataset)

    def must_not_run(settings, dataset):
        raise AssertionError("probed")

    monkeypatch.setattr(probe, "probe_steps", must_not_run)
    monkeypatch.setattr(probe, "free_bytes", lambda: plan_memory(settings).total - 1)
    assert describe_hours(settings, dataset).startswith("not probed: one process needs about")
