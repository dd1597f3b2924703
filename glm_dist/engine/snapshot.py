"""An engine's state as it was at one moment, on the host, where training does not change it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from glm_dist.engine.interface import Engine, Slice


class SliceSource(Protocol):
    """What a checkpoint is written from: an engine, or a snapshot of one."""

    rank: int
    world_size: int

    def slices(self) -> Iterator[Slice]:
        """See `Engine`."""

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""


@dataclass(frozen=True)
class Snapshot:
    """A copy of one rank's share, which takes as much memory again."""

    rank: int
    world_size: int
    pieces: list[Slice]
    described: dict[str, Any]

    @classmethod
    def of(cls, engine: Engine) -> "Snapshot":
        """Copy the state; returns when the copy is whole."""
        pieces = [
            piece._replace(tensors={k: _copy(tensor) for k, tensor in piece.tensors.items()})
            for piece in engine.slices()
        ]
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        return cls(engine.rank, engine.world_size, pieces, engine.describe())

    def slices(self) -> Iterator[Slice]:
        """See `Engine`."""
        return iter(self.pieces)

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        return self.described


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        return tensor.detach().clone()
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor.detach(), non_blocking=True)
