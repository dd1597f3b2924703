"""Do attributions name what decides? Tokens that they name are masked, and as many drawn at random.

It stands apart from the explanation of one text: this is about many, and what they add up to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from glm_dist.evaluate.explain import TOLERANCE
from glm_dist.evaluate.score import CONFIDENCE, NUM_RESAMPLES


class Drops(NamedTuple):
    """What came of one text."""

    gap: float
    """Share of the score difference that its attributions miss."""
    drop: float
    """How far the log odds fall when its top fifth is masked."""
    drop_at_random: float
    """The same for a random fifth."""


@dataclass(frozen=True)
class Faithfulness:
    """What came of all texts."""

    num_texts: int
    num_complete: int
    """Texts whose attributions add up to the score difference within 2 %."""
    largest_gap: float
    drop: float
    drop_at_random: float
    difference: float
    """Of the two drops; faithful attributions have it above zero."""
    interval: tuple[float, float]
    """95 %, by a bootstrap over texts."""

    def __str__(self) -> str:
        """In a line."""
        low, high = self.interval
        return (
            f"{self.num_complete} of {self.num_texts} add up within {TOLERANCE:.0%}, the furthest "
            f"within {self.largest_gap:.1%}; the log odds fall by {self.drop:.2f} without the top "
            f"fifth of the tokens, by {self.drop_at_random:.2f} without a random fifth: "
            f"{self.difference:.2f} more ({low:.2f} to {high:.2f})"
        )


def faithfulness(tested: Sequence[Drops], seed: int = 0) -> Faithfulness:
    """Means over texts, of which there is at least one, and the interval of their difference."""
    gaps, drops, at_random = np.array(tested, dtype=np.float64).T
    differences = drops - at_random
    drawn = np.random.default_rng(seed).integers(len(tested), size=(NUM_RESAMPLES, len(tested)))
    tails = 50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)
    low, high = np.percentile(differences[drawn].mean(axis=1), tails)
    return Faithfulness(
        len(tested),
        int((gaps <= TOLERANCE).sum()),
        float(gaps.max()),
        float(drops.mean()),
        float(at_random.mean()),
        float(differences.mean()),
        (float(low), float(high)),
    )
