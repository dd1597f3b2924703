"""LoRA and DoRA by peft, which is imported here only.

It stands apart because peft is optional: a trained adapter is merged and opened without it.
"""

import math
from typing import Any

import torch
from torch import nn

from glm_dist.errors import DependencyError
from glm_dist.model.init import stream_of
from glm_dist.model.transformer import GLM
from glm_dist.model.tuning_settings import TuningSettings

ADAPTER = "default"
"""What peft calls an adapter where nobody names it; part of its parameters' names."""


def inject(model: GLM, tuning: TuningSettings, targets: list[str]) -> None:
    """Put trained products beside the linear maps `targets`; all other parameters are frozen.

    Raises:
        DependencyError: when peft is not installed.
    """
    peft = _import_peft()
    config = lora_config(tuning, targets)
    peft.inject_adapter_in_model(config, model, ADAPTER)
    for name, parameter in model.named_parameters():
        if f".lora_A.{ADAPTER}." in name:
            _draw(name, parameter, model.settings.init_seed)


def lora_config(tuning: TuningSettings, targets: list[str], **options: Any) -> Any:
    """The settings as peft's `LoraConfig`."""
    return _import_peft().LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        use_dora=tuning.kind == "dora",
        target_modules=targets,
        bias="none",
        **options,
    )


def _import_peft() -> Any:
    try:
        import peft
    except ImportError:
        raise DependencyError(
            "tuning.kind lora and dora need peft, which is not installed; "
            "pip install 'glm-dist[tuning]', or set tuning.kind: none or p_tuning"
        ) from None
    return peft


@torch.no_grad()
def _draw(name: str, weight: nn.Parameter, seed: int) -> None:
    """As peft draws it, uniform within 1 / sqrt(inputs), from a stream of its own."""
    if weight.is_meta:
        return
    bound = 1 / math.sqrt(weight.shape[1])
    values = torch.empty(weight.shape)
    weight.copy_(values.uniform_(-bound, bound, generator=stream_of(seed, name)))
