"""Each parameter learns at its own share of the learning rate, alike in the twin and under ZeRO."""

import pytest
import rate_scenarios as rates
from distributed import run_ranks

INITIAL = {name: p.detach().flatten() for name, p in rates.Graded().named_parameters()}


@pytest.fixture(scope="module")
def found():
    """What rank 0 of two found."""
    return run_ranks(2, rates.life)[0]


@pytest.mark.parametrize("dtype", rates.DTYPES)
@pytest.mark.parametrize("backend", rates.BACKENDS)
def test_what_has_no_share_keeps_its_bits_and_the_rest_learns(found, backend, dtype):
    weights = found[backend, dtype]["weights"]
    for name, values in weights.items():
        assert (values == INITIAL[name].tolist()) is (rates.SHARES.get(name) == 0.0), name


def test_a_first_step_at_half_the_rate_goes_half_as_far(found):
    graded, alike = found["twin", "float32"]["first"], found["alike"]
    for name, start in INITIAL.items():
        moved = [value - first for value, first in zip(graded[name], start.tolist(), strict=True)]
        whole = [value - first for value, first in zip(alike[name], start.tolist(), strict=True)]
        share = rates.SHARES.get(name, 1.0)
        assert moved == pytest.approx([share * one for one in whole], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("backend", rates.BACKENDS[1:])
def test_every_stage_computes_what_the_twin_computes(found, backend):
    ours, twins = found[backend, "float32"], found["twin", "float32"]
    assert ours["losses"] == pytest.approx(twins["losses"], rel=1e-6)
    for name, values in twins["weights"].items():
        assert ours["weights"][name] == pytest.approx(values, rel=1e-5, abs=2e-6)
    narrow, its_twins = (found[one, "bfloat16"]["losses"] for one in (backend, "twin"))
    assert narrow == pytest.approx(its_twins, rel=1e-3)
