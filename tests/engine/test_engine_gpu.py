"""On one CUDA device the twin and ZeRO 1, 2 and 3 train alike in bf16."""

import engine_scenarios as scenarios
import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture(scope="module")
def twin():
    return _losses("twin", "bfloat16")


@pytest.mark.parametrize("backend", ["zero1", "zero2", "zero3"])
def test_bf16_losses_equal_the_twins(twin, backend):
    # Twenty steps of another order of summing: 2.6e-3 apart at most on an H200.
    assert _losses(backend, "bfloat16") == pytest.approx(twin, rel=5e-3)


@pytest.mark.parametrize("backend", ["zero1", "zero2", "zero3"])
def test_fp32_losses_equal_the_twins(backend):
    wanted = pytest.approx(_losses("twin", "float32"), rel=1e-5)
    assert _losses(backend, "float32") == wanted


def _losses(backend, dtype):
    engine = scenarios.make_engine(backend, dtype=dtype, gradient_clip_norm=0.5)
    return scenarios.run_steps(engine, 0, 20)
