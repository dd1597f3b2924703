"""What the loop needs of the world outside; launch gives Ray's, tests and benchmarks a local one.

It stands apart so that the loop runs without ray.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

from glm_dist.data.rows import Rows


class Boundary(Protocol):
    """The loop's view of its launcher."""

    rank: int
    world_size: int
    node: str
    """What the launcher knows this process's machine by."""

    def batches(self) -> Iterator[Rows]:
        """This rank's micro-batches, in order, from the row where the attempt resumes."""

    def report(self, metrics: dict[str, float]) -> None:
        """Tell the launcher where the run stands; called by every rank at checkpoints only."""

    def stop_requested(self) -> bool:
        """Whether this process has been asked to save and end."""


class LocalBoundary:
    """A boundary for one process: batches from an iterator, nobody to report to."""

    def __init__(self, batches: Iterator[Rows], rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.node = rank, ""
        self.world_size = world_size
        self.stop = False
        self._batches = batches

    def batches(self) -> Iterator[Rows]:
        """The iterator given."""
        return self._batches

    def report(self, metrics: dict[str, float]) -> None:
        """Nobody listens."""

    def stop_requested(self) -> bool:
        """Whether somebody set `stop`."""
        return self.stop


def all_sum(values: np.ndarray) -> np.ndarray:
    """Sum of float64 host `values` over all ranks, exact for counts; no device is touched."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    tensor = torch.from_numpy(np.array(values, dtype=np.float64))
    dist.all_reduce(tensor)
    return tensor.numpy()
