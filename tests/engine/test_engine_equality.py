"""The twin and all ZeRO stages compute the same; a discarded step leaves no trace."""

import engine_scenarios as scenarios
import pytest
from distributed import run_ranks

SHARDED = ("zero1", "zero2", "zero3", *scenarios.OFFLOADED)
ZERO = ("zero0", *SHARDED)


@pytest.fixture(params=["life", "narrow_life"])
def found(request):
    """Each rank's and backend's curve and life with discarded steps."""
    ranks = request.getfixturevalue(request.param).ranks
    return [(rank["curves"][name], rank["lives"][name]) for rank in ranks for name in rank["lives"]]


@pytest.mark.parametrize("backend", ZERO)
def test_fp32_losses_equal_the_twins(life, backend):
    curves = life.ranks[0]["curves"]
    assert curves[backend]["losses"] == pytest.approx(curves["twin"]["losses"], rel=1e-6)


@pytest.mark.parametrize("backend", ZERO)
def test_gradient_norms_equal_the_twins_on_all_ranks(life, backend):
    first, second = (rank["curves"] for rank in life.ranks)
    assert first[backend]["norms"] == pytest.approx(first["twin"]["norms"], rel=1e-6)
    assert first[backend]["norms"] == second[backend]["norms"]


def test_clipping_was_active(life):
    assert min(life.ranks[0]["curves"]["twin"]["norms"][:5]) > 0.5


@pytest.mark.parametrize("backend", ZERO)
def test_final_weights_equal_the_twins(life, backend):
    wanted = life.ranks[0]["curves"]["twin"]["weights"]
    found = life.ranks[0]["curves"][backend]["weights"]
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name] == pytest.approx(wanted[name], rel=1e-5, abs=2e-6)


def test_only_rank_zero_gets_full_weights(life):
    assert all(curve["weights"] is None for curve in life.ranks[1]["curves"].values())


def test_two_ranks_compute_what_one_computes(life, alone):
    wanted = life.ranks[0]["curves"]["twin"]["losses"]
    assert alone["curve"]["losses"] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("backend", SHARDED)
def test_sharded_optimizers_hold_half_the_bytes_on_each_of_two_ranks(life, backend):
    for rank in life.ranks:
        whole = rank["curves"]["twin"]["bytes"]
        assert rank["curves"]["zero0"]["bytes"] == whole
        assert rank["curves"][backend]["bytes"] == pytest.approx(whole / 2, rel=0.01)


@pytest.mark.parametrize("backend", ZERO)
def test_bf16_stays_within_its_own_distance_from_fp32(life, narrow_life, backend):
    exact = life.ranks[0]["curves"]["twin"]["losses"]
    narrow = narrow_life.ranks[0]["curves"]
    spread = _distance(narrow["twin"]["losses"], exact)
    assert 0 < spread < 0.01
    assert _distance(narrow[backend]["losses"], exact) < 1.5 * spread
    assert _distance(narrow[backend]["losses"], narrow["twin"]["losses"]) < spread


@pytest.mark.parametrize("backend", scenarios.BACKENDS[1:])
def test_a_real_glm_trains_alike(life, narrow_life, backend):
    exact = life.ranks[0]["glm"]
    assert exact[backend] == pytest.approx(exact["twin"], rel=1e-6)
    narrow = narrow_life.ranks[0]["glm"]
    # How far bf16 goes astray in six steps depends on the processor's kernels: 0.5 % has been seen.
    assert _distance(narrow[backend], exact["twin"]) < 0.02
    assert exact["twin"][-1] < exact["twin"][0]


@pytest.mark.slow
def test_compiled_layers_train_alike():
    exact = scenarios.glm_losses("twin", {})
    for losses in run_ranks(1, scenarios.compiled_glm_losses)[0].values():
        assert losses == pytest.approx(exact, rel=1e-5)


def test_a_discarded_step_changes_no_bit(found):
    assert all(life["discard_keeps_state"] for _, life in found)
    assert all(life["discard_keeps_weights"] for _, life in found)


def test_a_nan_on_one_rank_is_seen_by_all_and_leaves_no_trace(found):
    assert all(life["nan_seen"] for _, life in found)
    assert all(life["nan_norm"] == float("inf") for _, life in found)
    assert all(life["nan_discard_keeps_state"] for _, life in found)


def test_after_discarded_steps_the_run_goes_on_as_if_they_had_not_been(found):
    for curve, life in found:
        assert life["losses_after"] == curve["losses"][2:6]


def _distance(losses, reference):
    return max(abs(a / b - 1) for a, b in zip(losses, reference, strict=True))
