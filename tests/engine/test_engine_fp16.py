"""fp16 with a loss scale that follows what overflows: alike in the twin and in all ZeRO stages."""

import math

import engine_scenarios as scenarios
import pytest
import torch
from distributed import run_ranks

from glm_dist.engine import EngineSettings
from glm_dist.engine.loss_scale import LARGEST_SCALE, LEAST_SCALE, LossScale

NAMES = (*scenarios.BACKENDS, *scenarios.OFFLOADED)


@pytest.fixture(scope="module")
def half_life(tmp_path_factory):
    """What each backend did on two ranks, and what it did once more from its checkpoint."""
    folder = str(tmp_path_factory.mktemp("fp16"))
    first = run_ranks(2, scenarios.fp16_life, folder)
    return first, run_ranks(2, scenarios.fp16_second_life, folder)


def column(steps, name):
    return [step[name] for step in steps]


@pytest.mark.parametrize("name", NAMES)
def test_losses_equal_the_twins_and_fp32s_within_the_spacing_of_fp16(half_life, life, name):
    found, exact = half_life[0][0], life.ranks[0]["curves"]["twin"]["losses"]
    calm, twin = found[name]["calm"], found["twin"]["calm"]
    assert all(column(calm, "applied"))
    spacing = torch.finfo(torch.float16).eps
    assert column(calm, "loss") == pytest.approx(column(twin, "loss"), rel=spacing)
    assert column(calm, "loss") == pytest.approx(exact, rel=3 * spacing)
    assert column(calm, "norm")[:3] == pytest.approx(column(twin, "norm")[:3], rel=2 * spacing)


def test_all_stages_that_shard_gradients_alike_leave_out_the_same_steps(half_life):
    found = half_life[0][0]
    for name in ("zero1", "zero3", *scenarios.OFFLOADED):
        wanted = column(found["zero2"]["searching"], "scale")
        assert column(found[name]["searching"], "scale") == wanted


@pytest.mark.parametrize("name", NAMES)
def test_an_overflow_costs_its_step_on_all_ranks_and_halves_the_scale(half_life, name):
    one, other = (rank[name]["searching"] for rank in half_life[0])
    assert column(one, "applied") == column(other, "applied")
    assert column(one, "scale") == column(other, "scale")
    assert not one[0]["applied"]
    assert one[0]["norm"] == math.inf
    assert sum(column(one, "applied")) >= 5
    for step, after in zip(one, one[1:], strict=False):
        assert step["applied"] or after["scale"] == step["scale"] / 2
        assert not step["applied"] or after["scale"] in (step["scale"], 2 * step["scale"])
    scales = column(one, "scale")
    assert any(after > before for before, after in zip(scales, scales[1:], strict=False))


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_goes_on_with_its_scale_and_is_the_same_to_the_bit(half_life, name):
    for first, second in zip(*half_life, strict=True):
        assert second[name]["searching"] == first[name]["searching"][10:]
        assert second[name]["end"] == first[name]["end"]


def test_the_scale_stays_within_its_bounds_and_is_one_in_wider_types():
    scale = LossScale(2.0, growth_steps=1)
    for _ in range(3):
        scale.overflowed()
    assert scale.value == LEAST_SCALE
    for _ in range(40):
        scale.step_applied()
    assert scale.value == LARGEST_SCALE
    wide = LossScale.of(EngineSettings(), torch.bfloat16)
    wide.overflowed()
    wide.step_applied()
    wide.load(scale.to_json())
    assert wide.value == 1.0
