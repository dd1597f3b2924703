"""MFU of a run: the model's shape and the device's peak put to the formula."""

from typing import TYPE_CHECKING

import torch

from glm_dist.engine import Engine
from glm_dist.metrics.flops import ModelShape, peak_flops, training_flops
from glm_dist.model import ModelSettings

if TYPE_CHECKING:
    from glm_dist.train.loop import StepTotals


class StepFlops:
    """Counts useful operations of steps and says how well the devices are used."""

    def __init__(self, model: ModelSettings, engine: Engine) -> None:
        self._shape = shape_of(model)
        self._world_size = engine.world_size
        is_gpu = engine.device.type == "cuda" and engine.dtype != torch.float32
        self._peak = peak_flops(torch.cuda.get_device_name(engine.device)) if is_gpu else None

    def of(self, totals: "StepTotals") -> float:
        """Useful operations of one optimizer step over all ranks."""
        return training_flops(self._shape, totals.tokens, totals.loss_tokens, totals.visible_pairs)

    def utilisation(self, flops: float, seconds: float) -> dict[str, float]:
        """Useful FLOP/s, and as a share of the peak where the device's is known."""
        rate = flops / max(seconds, 1e-9)
        figures = {"useful_flops_per_second": rate}
        if self._peak:
            figures["mfu"] = rate / (self._peak * self._world_size)
        return figures


def shape_of(model: ModelSettings) -> ModelShape:
    """The numbers the formula takes."""
    return ModelShape(
        model.num_layers,
        model.hidden_size,
        model.ffn_hidden_size,
        model.padded_vocab_size,
        mixed_size=model.num_heads * model.head_size,
        kv_size=model.kv_heads * model.head_size,
        num_mlp_matrices=3 if model.is_gated else 2,
    )
