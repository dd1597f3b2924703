"""What a step holds over all ranks, by one all-reduce of numbers that are on the host already.

It stands apart because the loop counts, and whoever records and measures speed reads.
"""

from dataclasses import dataclass

import numpy as np

from glm_dist.objective import Mode
from glm_dist.train.boundary import Boundary, all_sum
from glm_dist.train.stream import StepRows


@dataclass(frozen=True)
class StepTotals:
    """What a step holds over all ranks."""

    stop: bool
    tokens: int
    visible_pairs: int
    mode_counts: np.ndarray

    @property
    def loss_tokens(self) -> float:
        """Loss-bearing tokens of the global batch: what its loss is divided by."""
        return float(self.mode_counts.sum())


def count(rows: StepRows, boundary: Boundary) -> StepTotals:
    """One all-reduce of host numbers; the stop flag rides on it, so that all ranks agree."""
    own = [float(boundary.stop_requested()), float(rows.num_tokens), float(rows.num_visible_pairs)]
    totals = all_sum(np.concatenate((own, rows.mode_counts)))
    return StepTotals(totals[0] > 0, int(totals[1]), int(totals[2]), totals[3 : 3 + len(Mode)])
