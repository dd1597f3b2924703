"""AdamW as every engine uses it: torch's fused kernels, decay on matrices only, rates by layer.

It stands apart so that the twin and all ZeRO stages update by the same code.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from glm_dist.engine.settings import EngineSettings
from glm_dist.model.tuning import rate_share_of


class Traits(NamedTuple):
    """How a parameter is updated."""

    is_decayed: bool
    """Whether weight decay applies: to matrices, not to biases and norms."""
    rate_share: float
    """Its learning rate as a share of the run's."""


def traits_of(parameter: Tensor) -> Traits:
    """Those of one of the model's parameters."""
    return Traits(parameter.ndim >= 2, rate_share_of(parameter))


def build_optimizer(
    parameters: Iterable[tuple[nn.Parameter, Traits]], settings: EngineSettings
) -> AdamW:
    """AdamW with a group for each of the traits that occur; its learning rate is 0 for now."""
    groups: dict[Traits, list[nn.Parameter]] = {}
    for parameter, traits in parameters:
        groups.setdefault(traits, []).append(parameter)
    return AdamW(
        [
            {
                "params": members,
                "weight_decay": settings.weight_decay if traits.is_decayed else 0.0,
                "rate_share": traits.rate_share,
            }
            for traits, members in sorted(groups.items(), key=lambda one: one[0], reverse=True)
        ],
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )


def create_states(optimizer: AdamW, masters: Iterable[nn.Parameter]) -> None:
    """Give every master weight the zero state that a first step would create.

    AdamW creates states lazily, but a checkpoint is read before the first step, and memory that
    will be needed should be taken at the start.
    """
    for master in masters:
        optimizer.state[master] = {
            "step": torch.zeros((), dtype=torch.float32, device=master.device),
            "exp_avg": torch.zeros_like(master, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(master, requires_grad=False),
        }


def set_learning_rate(optimizer: AdamW, learning_rate: float) -> None:
    """The rate of the next step; each group gets its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate_share"]
