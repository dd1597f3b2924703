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
        generator = stream_of(settings.init_seed, name)
        values = torch.empty(parameter.shape).normal_(generator=generator)
        if settings.residual == "deepnorm" and ".layers." in name:
            _scale_as_xavier(name, values, settings)
        else:
            values.mul_(_standard_deviation(name, settings))
        parameter.copy_(values)


def _standard_deviation(name: str, settings: ModelSettings) -> float:
    if name.endswith(_RESIDUAL_OUTPUTS):
        return settings.init_std / math.sqrt(2 * settings.num_layers)
    return settings.init_std


def _scale_as_xavier(name: str, values: Tensor, settings: ModelSettings) -> None:
    """Xavier-normal, with gain (2 num_layers)^-1/2 on MLP, values and output, as DeepNorm asks."""
    rows, columns = values.shape
    gain = 1 / math.sqrt(2 * settings.num_layers)
    if not name.endswith("query_key_value.weight"):
        values.mul_(gain * math.sqrt(2 / (rows + columns)))
        return
    # Each of queries, keys and values is a map of its own that shares the fused matrix.
    kv_size = settings.kv_heads * settings.head_size
    for part, factor in zip(
        values.split([rows - 2 * kv_size, kv_size, kv_size]), (1.0, 1.0, gain), strict=True
    ):
        part.mul_(factor * math.sqrt(2 / (part.shape[0] + columns)))


def stream_of(seed: int, name: str) -> torch.Generator:
    """The random stream of one parameter."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
