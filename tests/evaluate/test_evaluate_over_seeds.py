"""What several draws score together."""

import numpy as np
import pytest

from glm_dist.evaluate.over_seeds import over_seeds
from glm_dist.evaluate.score import mean_score


def test_draws_have_a_mean_an_interval_and_a_spread():
    rng = np.random.default_rng(0)
    by_seed = [[mean_score("accuracy", rng.random(40) < share)] for share in (0.4, 0.6, 0.8)]
    (found,) = over_seeds(by_seed)
    values = [one.value for (one,) in by_seed]
    assert found.by_seed == tuple(values)
    assert found.value == pytest.approx(np.mean(values))
    assert found.spread == pytest.approx(np.std(values, ddof=1))
    assert found.low < found.value < found.high
    assert f"single seeds {min(values):.1f} to {max(values):.1f}" in str(found)
    assert over_seeds(by_seed[:1])[0].spread == 0
