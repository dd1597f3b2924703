"""Scores that depend on a draw: mean, interval and spread over several seeds.

It stands apart from the score of one set of answers, of which examples alone make the interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glm_dist.evaluate.score import Score, interval


@dataclass(frozen=True)
class SeedScore:
    """One score over the seeds, in percent where it is a share."""

    name: str
    value: float
    """Mean over the seeds."""
    low: float
    high: float
    """95 % interval of the mean, of a bootstrap over examples and seeds."""
    spread: float
    """Standard deviation of the seeds; 0 of one alone."""
    by_seed: tuple[float, ...]

    def __str__(self) -> str:
        """The mean with its interval, and how far single seeds lie apart."""
        return (
            f"{self.name} {self.value:.1f} ({self.low:.1f} to {self.high:.1f}), single seeds "
            f"{min(self.by_seed):.1f} to {max(self.by_seed):.1f}, spread {self.spread:.1f}"
        )


def over_seeds(by_seed: Sequence[Sequence[Score]]) -> list[SeedScore]:
    """Each of the scores [seeds][scores] over all seeds, in their order."""
    return [_of_one(scores) for scores in zip(*by_seed, strict=True)]


def _of_one(scores: Sequence[Score]) -> SeedScore:
    values = tuple(score.value for score in scores)
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return SeedScore(scores[0].name, *interval(scores), spread, values)
