"""The plan of a run: hours from real steps, and none where they would not fit."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from train_scenarios import make_dataset, make_settings

from glm_dist.metrics.flops import training_flops
from glm_dist.model import Batch, build_model, transformer
from glm_dist.model.tuning import apply_tuning
from glm_dist.train import probe
from glm_dist.train.flops import shape_of, trained_share
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


def matrix_flops(settings, monkeypatch):
    """What torch counts of matrix products in one step on one row, attention left out."""
    model = apply_tuning(build_model(settings.model), settings.tuning)
    tokens = torch.zeros(1, 64, dtype=torch.long)
    ones, places = torch.ones_like(tokens), torch.arange(64)[None]
    batch = Batch(tokens, tokens, places, tokens, ones, tokens, ones)
    attend = lambda *_: lambda query, key, value: query + key.mean() + value  # noqa: E731
    monkeypatch.setattr(transformer, "build_attend", attend)
    with FlopCounterMode(display=False) as counter:
        model(*batch).loss_sum.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "frozen",
    [
        [],
        ["transformer.layers.*.attention.*"],
        ["word_embeddings.*", "transformer.layers.[01].*"],
        ["word_embeddings.*", "transformer.layers.*"],
    ],
)
def test_useful_work_is_what_torch_counts_where_parameters_are_frozen(dataset, monkeypatch, frozen):
    settings = make_settings(dataset, model={"num_layers": 3}, tuning={"frozen": frozen})
    share = trained_share(settings.model, settings.tuning)
    planned = training_flops(shape_of(settings.model), 64, 64, 0, share)
    counted = matrix_flops(settings, monkeypatch)
    # Of the lowest trained layer the first matrix needs no gradient of its input; it is counted.
    first = 2 * 64 * settings.model.hidden_size * settings.model.qkv_size
    assert planned - counted in (0, first)
