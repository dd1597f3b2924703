"""Ranks that keep all others waiting, by the time that each needs for its own forward passes."""

import socket
from collections.abc import Callable

import numpy as np

from glm_dist.engine import Engine
from glm_dist.engine.catalogue import exchange_objects
from glm_dist.train.boundary import all_sum

SLOW_FACTOR = 2.0
"""A rank is slow at so many times the median of the others, in two intervals in a row."""


class Stragglers:
    """Compares the ranks now and then, and names each slow one once."""

    def __init__(self, engine: Engine, note: Callable[..., None]) -> None:
        """All ranks make one; `note` writes an event down."""
        self._engine, self._note = engine, note
        self._hosts = exchange_objects(socket.gethostname())
        self._slow_before: set[int] = set()
        self._named: set[int] = set()

    def look(self, step: int) -> None:
        """Compare the forward passes since the last look; a collective on the host."""
        own = np.zeros(self._engine.world_size)
        own[self._engine.rank] = self._engine.forward_seconds()
        factors = slowness(all_sum(own))
        slow = set(np.flatnonzero(factors > SLOW_FACTOR).tolist())
        for rank in (slow & self._slow_before) - self._named:
            self._named.add(rank)
            factor = round(float(factors[rank]), 1)
            self._note("slow rank", step=step, rank=rank, host=self._hosts[rank], factor=factor)
        self._slow_before = slow


def slowness(seconds: np.ndarray) -> np.ndarray:
    """Each rank's seconds over the median of the other ranks'; ones for a single rank."""
    if len(seconds) < 2:
        return np.ones_like(seconds)
    others = [np.median(np.delete(seconds, rank)) for rank in range(len(seconds))]
    return seconds / np.maximum(others, 1e-9)
