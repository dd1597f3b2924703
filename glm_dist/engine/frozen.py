"""Weights that training leaves alone: kept as they came, and no more than once over all ranks.

They stand apart because engines round their copies to the type they compute in, while checkpoints
and exports hold what was given.
"""

from collections.abc import Callable, Container
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from glm_dist.engine.fragments import Fragment, even_share, fill
from glm_dist.engine.interface import ReadSlice

Gather = Callable[[nn.Parameter], AbstractContextManager[None]]
"""A context in which a sharded parameter is whole; what rank 0 writes into it counts."""


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that get a gradient, by name."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def kept_shapes(model: nn.Module, rebuilt: Container[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that checkpoints hold."""
    return {name: tuple(p.shape) for name, p in model.named_parameters() if name not in rebuilt}


class FrozenWeights:
    """This rank's even share of the frozen weights as rank 0 had them, on the host, fp32 at least.

    `model` is whole and has not been rounded yet; those that are rebuilt are not kept.
    """

    def __init__(
        self, model: nn.Module, rebuilt: Container[str], rank: int, world_size: int
    ) -> None:
        self._rank = rank
        self._kept = [
            name
            for name, parameter in model.named_parameters()
            if not parameter.requires_grad and name not in rebuilt
        ]
        weights = {name: model.get_parameter(name).detach() for name in self._kept}
        if world_size > 1:
            for weight in weights.values():
                dist.broadcast(weight, src=0)
        whole = [_fragment(name, weight) for name, weight in weights.items()]
        self.share = [_on_host(part) for part in even_share(whole, rank, world_size)]

    def load(self, read: ReadSlice) -> None:
        """Take the share from elsewhere."""
        fill(self.share, read)

    @torch.no_grad()
    def copy_into(self, model: nn.Module, read: ReadSlice, gather: Gather | None = None) -> None:
        """Overwrite the model's copies; all ranks call it.

        Args:
            model: whose frozen weights are set.
            read: where they come from.
            gather: how a weight is made whole, where ranks hold shares of it.
        """
        for name in self._kept:
            weight = model.get_parameter(name)
            with gather(weight) if gather else nullcontext():
                if gather is None or self._rank == 0:
                    weight.copy_(read(name, 0, weight.numel())["master"].view(weight.shape))


def _fragment(name: str, weight: Tensor) -> Fragment:
    tensors = {"master": weight.view(-1)}
    return Fragment(name, tuple(weight.shape), 0, tensors, torch.zeros(()))


def _on_host(part: Fragment) -> Fragment:
    wide = torch.promote_types(part.tensors["master"].dtype, torch.float32)
    copy = part.tensors["master"].to("cpu", wide, copy=True)
    return part._replace(tensors={"master": copy})
