"""AdamW as every engine uses it: torch's fused kernels, decay on matrices only.

It stands apart so that the twin and all ZeRO stages update by the same code.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import AdamW

from glm_dist.engine.settings import EngineSettings


def build_optimizer(
    parameters: Iterable[tuple[nn.Parameter, bool]], settings: EngineSettings
) -> AdamW:
    """AdamW over (parameter, whether it decays), in two groups; its learning rate is 0 for now."""
    pairs = list(parameters)
    decayed = [parameter for parameter, decays in pairs if decays]
    others = [parameter for parameter, decays in pairs if not decays]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )


def is_decayed(parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, not to biases and norms."""
    return parameter.ndim >= 2


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
    """The rate of the next step, in all groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
