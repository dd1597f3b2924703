"""MFU of a run: the model's shape and the device's peak put to the formula."""

import re
import sys

import torch

from glm_dist.engine import Engine
from glm_dist.metrics.flops import ModelShape, TrainedShare, peak_flops, training_flops
from glm_dist.model import ModelSettings
from glm_dist.model.tuning import is_added, meta_model
from glm_dist.model.tuning_settings import TuningSettings
from glm_dist.train.totals import StepTotals

_BEHIND = ("transformer.final_layernorm.", "score.", "output_layer.")
"""Begin the names of what comes behind all layers."""


class StepFlops:
    """Counts useful operations of steps and says how well the devices are used."""

    def __init__(self, model: ModelSettings, tuning: TuningSettings, engine: Engine) -> None:
        self._shape, self._trained = shape_of(model), trained_share(model, tuning)
        self._world_size = engine.world_size
        is_gpu = engine.device.type == "cuda" and engine.dtype != torch.float32
        self._peak = peak_flops(torch.cuda.get_device_name(engine.device)) if is_gpu else None

    def of(self, totals: StepTotals) -> float:
        """Useful operations of one optimizer step over all ranks."""
        return training_flops(
            self._shape, totals.tokens, totals.loss_tokens, totals.visible_pairs, self._trained
        )

    def utilisation(self, flops: float, seconds: float) -> dict[str, float]:
        """Useful FLOP/s, and as a share of the peak where the device's is known."""
        rate = flops / max(seconds, 1e-9)
        figures = {"useful_flops_per_second": rate}
        if self._peak:
            figures["mfu"] = rate / (self._peak * self._world_size)
        return figures


def trained_share(model: ModelSettings, tuning: TuningSettings) -> TrainedShare:
    """How much of the layers' matrices and of the head is trained, and how deep that reaches."""
    whole = meta_model(model, tuning)
    trained = {name for name, p in whole.named_parameters() if p.requires_grad}
    matrices = {
        name: p.numel()
        for name, p in whole.named_parameters()
        if ".layers." in name and p.ndim == 2 and not is_added(name)
    }
    lowest = min(model.num_layers, *map(_layer_of, trained))
    return TrainedShare(
        layers=sum(size for name, size in matrices.items() if name in trained)
        / sum(matrices.values()),
        head=float(any(name.startswith(_head_name(model)) for name in trained)),
        reached=1 - lowest / model.num_layers,
    )


def _layer_of(name: str) -> int:
    """The layer that a parameter lies in; what comes before all layers counts to the first."""
    match = re.search(r"\.layers\.(\d+)\.", name)
    if match is not None:
        return int(match[1])
    return sys.maxsize if name.startswith(_BEHIND) else 0


def _head_name(model: ModelSettings) -> str:
    if model.head.is_classifier:
        return "score."
    return "word_embeddings." if model.tied_embeddings else "output_layer."


def shape_of(model: ModelSettings) -> ModelShape:
    """The numbers the formula takes."""
    return ModelShape(
        model.num_layers,
        model.hidden_size,
        model.ffn_hidden_size,
        len(model.head.labels) or model.padded_vocab_size,
        mixed_size=model.num_heads * model.head_size,
        kv_size=model.kv_heads * model.head_size,
        num_mlp_matrices=3 if model.is_gated else 2,
    )
