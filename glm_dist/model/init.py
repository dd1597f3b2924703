"""Initial weights, each parameter from a random stream of its own.

It stands apart because a sharding engine initialises one parameter at a time, in its own order and
on its own device: the stream depends only on the seed and the parameter's name.
"""

import hashlib
import math

import torch
from torch import Tensor, nn

from glm_dist.model.settings import ModelSettings
from glm_dist.model.transformer import GLM

_RESIDUAL_OUTPUTS = ("attention.dense.weight", "mlp.dense_4h_to_h.weight")


def build_model(settings: ModelSettings, device: torch.device | str = "cpu") -> GLM:
    """A GLM in fp32 with initial weights; the same on every device and in every process."""
    with torch.device("meta"):
        model = GLM(settings)
    model.to_empty(device=device)
    initialise(model, settings)
    return model


def initialise(model: nn.Module, settings: ModelSettings) -> None:
    """Draw every weight of a GLM anew, in place."""
    for name, parameter in model.named_parameters():
        initialise_parameter(name, parameter, settings)


@torch.no_grad()
def initialise_parameter(name: str, parameter: Tensor, settings: ModelSettings) -> None:
    """Draw one parameter of that name anew, in place; it must be whole, not a shard."""
    if name.endswith(".bias"):
        parameter.zero_()
    elif name.endswith("layernorm.weight"):
        parameter.fill_(1.0)
    else:
        generator = torch.Generator().manual_seed(_stream_seed(settings.init_seed, name))
        values = torch.empty(parameter.shape).normal_(generator=generator)
        parameter.copy_(values.mul_(_standard_deviation(name, settings)))


def _standard_deviation(name: str, settings: ModelSettings) -> float:
    if name.endswith(_RESIDUAL_OUTPUTS):
        return settings.init_std / math.sqrt(2 * settings.num_layers)
    return settings.init_std


def _stream_seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
