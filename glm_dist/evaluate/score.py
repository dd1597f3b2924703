"""A score with what it is made of: its value, its interval, and the gain of one arm over another.

Every score of the field is a function of figures that add up over examples (hits, matched n-grams,
lengths). Kept apart by example they give the bootstrap: resample examples, add up, score again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from glm_dist.errors import DataError

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
RESAMPLES_AT_A_TIME = 64

Combine = Callable[[np.ndarray], np.ndarray]
"""Added-up statistics [R, K] → scores in percent [R]."""


@dataclass(frozen=True, eq=False)
class Score:
    """A score of one set of predictions, in percent where it is a share."""

    name: str
    value: float
    statistics: np.ndarray
    """[N, K]: what each example adds."""
    combine: Combine = field(repr=False)
    signature: str = ""
    """The library's own words for how it was computed, where it has some."""

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean of the examples' own values, the first column of statistics."""
        return self.combine is _mean


class Interval(NamedTuple):
    """A mean over seeds and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


def mean_score(name: str, values: Sequence[float] | np.ndarray) -> Score:
    """A score that is the mean of the examples' own values, each a share of 1."""
    statistics = np.asarray(values, dtype=np.float64).reshape(-1, 1)
    _check_count(name, len(statistics))
    statistics = np.hstack((statistics, np.ones_like(statistics)))
    return Score(name, float(_mean(statistics.sum(0, keepdims=True))[0]), statistics, _mean)


def interval(scores: Sequence[Score], seed: int = 0) -> Interval:
    """Mean over the arms' seeds; examples and seeds are both drawn again, with replacement."""
    low, high = np.percentile(_resampled(scores, seed), _tails())
    return Interval(_mean_value(scores), float(low), float(high))


def gain(ours: Sequence[Score], theirs: Sequence[Score], seed: int = 0) -> Interval:
    """How far ours lies above theirs on the same examples, by the paired bootstrap.

    A gain counts when `low` is above zero.
    """
    if len(ours[0].statistics) != len(theirs[0].statistics):
        raise DataError(
            f"{ours[0].name}: a gain is measured on the same examples, got "
            f"{len(ours[0].statistics)} and {len(theirs[0].statistics)}; score both on one split"
        )
    # The same examples for both, each arm's training seeds by themselves.
    differences = _resampled(ours, seed, arm=1) - _resampled(theirs, seed, arm=2)
    low, high = np.percentile(differences, _tails())
    return Interval(_mean_value(ours) - _mean_value(theirs), float(low), float(high))


def _resampled(scores: Sequence[Score], seed: int, arm: int = 1) -> np.ndarray:
    """The mean score of every resample, [NUM_RESAMPLES]."""
    count = len(scores[0].statistics)
    examples, seeds = np.random.default_rng([seed, 0]), np.random.default_rng([seed, arm])
    results = []
    for first in range(0, NUM_RESAMPLES, RESAMPLES_AT_A_TIME):
        rows = min(RESAMPLES_AT_A_TIME, NUM_RESAMPLES - first)
        weights = examples.multinomial(count, np.full(count, 1 / count), size=rows)
        drawn = [score.combine(weights @ score.statistics) for score in scores]
        chosen = seeds.integers(len(scores), size=(len(scores), rows))
        results.append(np.take_along_axis(np.stack(drawn), chosen, axis=0).mean(axis=0))
    return np.concatenate(results)


def _mean(sums: np.ndarray) -> np.ndarray:
    return 100 * sums[:, 0] / sums[:, 1]


def _mean_value(scores: Sequence[Score]) -> float:
    return float(np.mean([score.value for score in scores]))


def _tails() -> tuple[float, float]:
    return 50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)


def _check_count(name: str, count: int) -> None:
    if not count:
        raise DataError(f"{name}: there are no examples to score; give at least one")
