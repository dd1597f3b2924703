"""Figures over many texts that say whether attributions name what decides."""

import numpy as np
import pytest

from glm_dist.evaluate.faithful import Drops, faithfulness


def test_texts_that_add_up_are_counted_and_drops_compared_pair_by_pair():
    found = faithfulness([Drops(0.01, 3.0, 1.0), Drops(0.02, 2.0, 1.0), Drops(0.05, 1.0, 1.0)])
    assert (found.num_texts, found.num_complete, found.largest_gap) == (3, 2, 0.05)
    assert (found.drop, found.drop_at_random, found.difference) == (2.0, 1.0, 1.0)
    low, high = found.interval
    assert 0 <= low < 1 < high <= 2


def test_the_interval_of_noise_holds_zero_and_that_of_a_shift_does_not():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200, 2))
    for shift, holds_zero in ((0.0, True), (1.0, False)):
        found = faithfulness([Drops(0.0, a + shift, b) for a, b in noise])
        assert (found.interval[0] <= 0 <= found.interval[1]) is holds_zero
        assert found.difference == pytest.approx(found.drop - found.drop_at_random)
