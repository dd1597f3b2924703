"""DeepSpeed's private side is still as seam.py knows it; a new release fails here first."""

import inspect
import logging

import pytest
import torch

from glm_dist.engine import seam


@pytest.fixture(scope="module")
def deepspeed():
    return seam.import_deepspeed()


def test_the_release_is_the_one_the_seam_was_read_in(deepspeed):
    assert deepspeed.__version__ == "0.19.8"


def test_zero_steps_ask_the_methods_the_gate_answers(deepspeed):
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    source = inspect.getsource(stage_1_and_2)
    assert "scaled_global_grad_norm = self.scaled_global_norm()" in source
    assert "self.check_overflow(partition_gradients=self.partition_gradients)" in source
    assert "is_invalid_grad_norm(scaled_global_grad_norm)" in source
    source = inspect.getsource(stage3)
    assert "norm_groups = self._get_norm_groups()" in source
    assert "is_invalid_grad_norm(scaled_global_grad_norm)" in source


def test_optimizers_have_what_the_slices_are_read_from(life):
    assert life.ranks[0]["missing"] == {"zero1": [], "zero2": [], "zero3": []}


@pytest.mark.parametrize("name", ["life", "narrow_life"])
def test_nothing_is_compiled_and_nothing_printed(request, name):
    folder = request.getfixturevalue(name).folder
    assert not (folder / "extensions").exists()
    assert [(folder / f"output-{rank}").read_text() for rank in range(2)] == ["", ""]


def test_deepspeeds_errors_go_through_logging(deepspeed):
    logger = logging.getLogger("DeepSpeed")
    assert logger.propagate
    assert logger.handlers == []
    assert logger.level == logging.ERROR


def test_norm_of_bf16_gradients_is_taken_in_fp32():
    gradient = torch.full((1000,), 1.0, dtype=torch.bfloat16)
    assert float(seam._norm_of([gradient])) == pytest.approx(1000**0.5, rel=1e-6)
