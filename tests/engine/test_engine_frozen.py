"""Frozen parameters keep every bit, cost no optimizer state, and are in every checkpoint."""

import engine_scenarios as scenarios
import frozen_scenarios as frozen
import pytest
from distributed import run_ranks

BACKENDS = (*scenarios.BACKENDS, *scenarios.OFFLOADED)
INITIAL = {name: p.detach().flatten() for name, p in frozen.HalfFrozen().named_parameters()}
IS_FROZEN = {name: not p.requires_grad for name, p in frozen.HalfFrozen().named_parameters()}


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """Folder and what each of two ranks found."""
    folder = str(tmp_path_factory.mktemp("frozen"))
    return folder, run_ranks(2, frozen.frozen_life, folder)


@pytest.fixture(scope="module")
def resumed(life):
    """The same checkpoints, on two ranks and on one."""
    return {
        2: life[1][0]["resumed"],
        1: run_ranks(1, frozen.frozen_resumed, life[0], frozen.MOVES)[0],
    }


@pytest.mark.parametrize("dtype", frozen.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_weights_keep_their_bits_and_the_others_move(life, backend, dtype):
    weights = life[1][0][backend, dtype]["weights"]
    assert weights.keys() == INITIAL.keys()
    for name, values in weights.items():
        assert (values == INITIAL[name].tolist()) is IS_FROZEN[name], name


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_losses_equal_the_twins(life, backend):
    found = life[1][0]
    expected = found["twin", "float32"]["losses"]
    assert found[backend, "float32"]["losses"] == pytest.approx(expected, rel=1e-6)
    narrow = found["twin", "bfloat16"]["losses"]
    assert found[backend, "bfloat16"]["losses"] == pytest.approx(narrow, rel=1e-3)
    assert expected[-1] < expected[0]


@pytest.mark.parametrize("dtype", frozen.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_state_is_kept_for_what_is_trained_alone(life, backend, dtype):
    for rank in life[1]:
        for name, keys in rank[backend, dtype]["state"].items():
            moments = [] if IS_FROZEN[name.split("@")[0]] else ["exp_avg", "exp_avg_sq"]
            assert keys == [*moments, "master"]
    trained = sum(INITIAL[name].numel() for name in INITIAL if not IS_FROZEN[name])
    num_shares = 1 if backend in ("twin", "zero0") else 2
    expected = 12 * trained / num_shares
    assert life[1][0][backend, dtype]["bytes"] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_share_the_frozen_weights_in_a_checkpoint(life, backend):
    both = [rank[backend, "float32"]["state"] for rank in life[1]]
    assert not both[0].keys() & both[1].keys()


@pytest.mark.parametrize("dtype", frozen.DTYPES)
@pytest.mark.parametrize("backend", scenarios.BACKENDS)
def test_a_run_goes_on_from_its_checkpoint_bit_by_bit(life, resumed, backend, dtype):
    found, expected = resumed[2][backend, backend, dtype], life[1][0][backend, dtype]
    assert found["losses"] == expected["losses"][2:]
    assert found["weights"] == expected["weights"]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("move", frozen.MOVES)
def test_another_stage_and_world_size_go_on(life, resumed, move, world_size):
    found = resumed[world_size][(*move, "float32")]
    expected = life[1][0][move[0], "float32"]
    assert found["losses"] == pytest.approx(expected["losses"][2:], rel=1e-6)
    narrow = resumed[world_size][(*move, "bfloat16")]["weights"]
    for name in filter(IS_FROZEN.get, INITIAL):
        assert found["weights"][name] == narrow[name] == INITIAL[name].tolist()


def test_other_frozen_parameters_than_a_checkpoints_are_refused_by_name(life):
    trains_more, trains_less = frozen.refusals(life[0])
    assert "first.weight was frozen there" in trains_more
    assert "second.weight was trained there" in trains_less
