"""The benchmark: its yardstick trains as the engine does, and it refuses what it cannot compare."""

import copy
from argparse import Namespace

import pytest
import torch
from _bare_loop import bare_loop
from benchmark import check
from train_scenarios import make_dataset, make_settings

from glm_dist.engine import EngineSettings, build_engine
from glm_dist.errors import ConfigError
from glm_dist.model import build_model
from glm_dist.train.probe import packed_steps
from glm_dist.train.stream import StepRows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


def train_by_engine(model, settings, steps):
    engine = build_engine(lambda: model, settings.engine)
    for micro_batches in steps:
        rows = StepRows(micro_batches)
        for number, (batch, _) in enumerate(rows.batches(engine.device), start=1):
            engine.backward(batch, 1 / rows.mode_counts.sum(), number == len(micro_batches))
        engine.prepare()
        engine.apply(settings.schedule.peak_learning_rate)
    return engine.full_weights()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_the_bare_loop_takes_the_steps_the_engine_takes(dataset, dtype, tolerance):
    """Weights move by the same way; a large epsilon and clipping make gradients' sizes count."""
    plain = EngineSettings(
        backend="torch", dtype=dtype, weight_decay=0, eps=1e-2, gradient_clip_norm=0.5
    )
    settings = make_settings(dataset, engine=plain, schedule={"peak_learning_rate": 1e-2})
    steps = list(packed_steps(settings, dataset, 5, rows_per_step=8))
    torch.manual_seed(0)
    start = build_model(settings.model)
    initial = {name: weight.detach().clone() for name, weight in start.named_parameters()}
    model = copy.deepcopy(start).to(getattr(torch, dtype))
    seconds = bare_loop(model, settings, steps)
    expected = train_by_engine(copy.deepcopy(start), settings, steps)
    assert len(seconds) == 5
    bare = {name: weight.detach().float() for name, weight in model.named_parameters()}
    moved = sum(float((expected[name] - p).square().sum()) for name, p in initial.items())
    apart = sum(float((expected[name] - bare[name]).square().sum()) for name in expected)
    assert apart**0.5 < tolerance * moved**0.5


def test_what_cannot_be_compared_is_refused_with_every_reason(dataset):
    settings = make_settings(
        dataset,
        workers={"num_workers": 2},
        log_every_steps=4,
        duration={"num_steps": 11},
    )
    with pytest.raises(ConfigError) as caught:
        check(settings, Namespace(turns=0, peers=True))
    text = str(caught.value)
    assert "take at least 12 steps" in text
    assert "add workers.num_workers=1" in text
    assert "--turns: got 0" in text
    assert "no Hugging Face class computes this model" in text
    check(make_settings(dataset, log_every_steps=4), Namespace(turns=1, peers=False))
