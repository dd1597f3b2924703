"""A checkpoint continues bitwise on the same world, and within rounding on any other."""

import pytest
from engine_scenarios import ONE_RANK, OTHER_STAGE, SAME


@pytest.mark.parametrize("move", SAME)
def test_new_processes_continue_bitwise(life, resumed, move):
    _assert_same_bits(life, resumed, move)


@pytest.mark.parametrize("move", SAME)
def test_new_processes_continue_bitwise_in_bf16(narrow_life, narrow_resumed, move):
    _assert_same_bits(narrow_life, narrow_resumed, move)


def test_the_state_of_the_loop_comes_back(resumed):
    assert resumed[0]["zero2", "zero2"]["state"] == {"next_row": 24, "note": "三"}


@pytest.mark.parametrize("move", OTHER_STAGE)
def test_another_stage_continues_the_curve(life, resumed, move):
    assert resumed[0][move]["losses"] == pytest.approx(_losses(life, move), rel=1e-6)


@pytest.mark.parametrize("move", OTHER_STAGE)
def test_another_stage_continues_the_curve_in_bf16(narrow_life, narrow_resumed, move):
    assert narrow_resumed[0][move]["losses"] == pytest.approx(_losses(narrow_life, move), rel=5e-4)


@pytest.mark.parametrize("move", ONE_RANK)
def test_one_rank_continues_the_curve_of_two(life, alone, move):
    assert alone["resumed"][move]["losses"] == pytest.approx(_losses(life, move), rel=1e-6)


def _losses(life, move, rank=0):
    return life.ranks[rank]["lives"][move[0]]["losses_after"][1:]


def _assert_same_bits(life, after, move):
    for rank in range(2):
        assert after[rank][move]["losses"] == _losses(life, move, rank)
        assert after[rank][move]["end"] == life.ranks[rank]["lives"][move[0]]["end"]
