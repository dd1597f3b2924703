"""Where a run's time went, from journals written by hand."""

import pytest

from glm_dist.train.goodput import account


def attempt(number, time, step, seconds=None):
    return {
        "event": "attempt",
        "number": number,
        "time": time,
        "step": step,
        "seconds": seconds or {},
    }


def end(number, time, reason=None):
    event = {"event": "ended", "reason": reason} if reason else {"event": "failed"}
    return {**event, "number": number, "time": time}


def checkpoint(attempt_number, time, step, **seconds):
    return {
        "event": "checkpoint",
        "attempt": attempt_number,
        "time": time,
        "step": step,
        "seconds": seconds,
    }


def test_an_undisturbed_run_is_its_clock_and_the_launch_before_it():
    found = account(
        [attempt(0, 100, 0), end(0, 210, "finished")],
        [checkpoint(0, 205, 50, compute=80, data=5, checkpoint=4, evaluation=1)],
    )
    assert found.wall == pytest.approx(110)
    assert found.goodput == pytest.approx(80 / 110)
    assert found.seconds["start-up"] == pytest.approx(15)
    assert found.seconds["redone steps"] == 0


def test_what_came_after_the_checkpoint_resumed_from_is_done_again():
    found = account(
        [
            attempt(0, 0, 0),
            end(0, 60),
            attempt(1, 64, 20, {"compute": 30}),
            end(1, 120, "finished"),
        ],
        [
            checkpoint(0, 20, 10, compute=15),
            checkpoint(0, 40, 20, compute=30),
            checkpoint(0, 55, 30, compute=44),  # damaged, say: the next attempt began at 20
            checkpoint(1, 118, 50, compute=30 + 45),
        ],
    )
    assert found.seconds["steps"] == pytest.approx(75)
    assert found.seconds["redone steps"] == pytest.approx(20)
    assert found.seconds["restart"] == pytest.approx(4)
    assert found.wall == pytest.approx(120)


def test_an_attempt_that_saved_nothing_was_all_in_vain():
    found = account(
        [attempt(0, 0, 0), end(0, 30), attempt(1, 30, 0), end(1, 60, "finished")],
        [checkpoint(1, 60, 10, compute=25)],
    )
    assert found.seconds["redone steps"] == pytest.approx(30)


def test_time_between_a_stop_and_the_next_submission_counts_for_nothing():
    found = account(
        [attempt(0, 0, 0), end(0, 50, "signal"), attempt(1, 9000, 10, {"compute": 40})],
        [checkpoint(0, 50, 10, compute=40), checkpoint(1, 9060, 20, compute=90)],
        now=9060,
    )
    assert found.wall == pytest.approx(110)
    assert found.goodput == pytest.approx(90 / 110)


def test_a_driver_that_died_is_counted_up_to_its_last_sign():
    found = account(
        [attempt(0, 0, 0), attempt(1, 70, 10, {"compute": 20}), end(1, 100, "finished")],
        [checkpoint(0, 30, 10, compute=20), checkpoint(1, 100, 30, compute=40)],
    )
    assert found.seconds["restart"] == pytest.approx(40)
    assert found.wall == pytest.approx(100)
