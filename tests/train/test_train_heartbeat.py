"""A group in which nobody gets anywhere: found without a collective, the right rank named."""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from distributed import RankFailedError, run_ranks
from train_scenarios import make_dataset, make_settings, train_with_a_nap

from glm_dist.metrics.clock import Clock
from glm_dist.train.heartbeat import (
    HangDetector,
    Heartbeat,
    Sign,
    read_signs,
    sign_path,
    write_stacks,
)
from glm_dist.train.worker import SIGNS_FOLDER

LIMIT, LONGER_LIMIT = 2.0, 6.0  # the longer where ranks take seconds to start


class Script:
    """Signs of three ranks, as they would be written, and a clock that the test moves."""

    def __init__(self, folder):
        self.folder, self.now = folder, 100.0
        self.signs = [
            Sign(rank, 7, "node", f"host-{rank}", 1000 + rank, 0, 5, "data") for rank in range(3)
        ]
        self.detector = HangDetector(folder, 7, LIMIT)

    def pass_time(self, seconds, beating=(0, 1, 2), progressing=()):
        """Look ten times a second; beats and progress go on for those named."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            for rank, sign in enumerate(self.signs):
                self.signs[rank] = replace(
                    sign,
                    beat=sign.beat + (rank in beating),
                    progress=sign.progress + (rank in progressing),
                )
                sign_path(self.folder, sign).write_text(json.dumps(vars(self.signs[rank])))
            hang = self.detector.look(self.now)
            if hang is not None:
                return hang
        return None

    def set(self, rank, **values):
        self.signs[rank] = replace(self.signs[rank], **values)


@pytest.fixture
def script(tmp_path):
    return Script(tmp_path)


def test_a_group_of_which_one_gets_on_does_not_hang(script):
    assert script.pass_time(20, progressing=(1,)) is None


def test_the_rank_that_is_behind_the_others_is_named_with_host_and_part(script):
    script.set(0, progress=6, part="compute")
    script.set(2, progress=6, part="compute")
    hang = script.pass_time(10)
    assert [sign.rank for sign in hang.culprits] == [1]
    assert "rank 1 on host-1 (process 1001), which is in part 'data'" in str(hang)
    assert script.now - 100 < LIMIT + 0.5


def test_the_rank_without_a_sign_of_life_is_named_though_none_is_behind(script):
    script.pass_time(1, progressing=(0, 1, 2))
    hang = script.pass_time(10, beating=(0, 1))
    assert [sign.rank for sign in hang.culprits] == [2]
    assert "shows no sign of life" in str(hang)


def test_where_all_are_at_the_same_place_all_are_named(script):
    assert len(script.pass_time(10).culprits) == 3


def test_signs_of_an_earlier_attempt_count_for_nothing(script):
    for rank in range(3):
        script.set(rank, attempt=6)
    assert script.pass_time(10) is None


def test_a_clock_that_jumps_on_a_ranks_machine_changes_nothing(script, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert script.pass_time(20, progressing=(0,)) is None


def _rank(folder, rank, naps_in):
    clock = Clock("start-up")
    with Heartbeat(folder, rank, 3, "here", clock, LIMIT):
        while True:
            for part in ("data", "compute"):
                clock.enter(part)
                _be_in_a_part(1000 if part == naps_in else 0.05)


def _be_in_a_part(seconds):
    time.sleep(seconds)


@pytest.fixture
def start(tmp_path):
    """Starts a rank as a process of its own."""
    started = []

    def start_rank(rank, naps_in=None):
        process = multiprocessing.get_context("spawn").Process(
            target=_rank, args=(tmp_path, rank, naps_in), daemon=True
        )
        process.start()
        started.append(process)
        return process

    yield start_rank
    for process in started:
        process.kill()
        process.join()


def watch(folder, until, seconds=30):
    """Look until `until` of the hang found, None included, is true."""
    detector, end = HangDetector(folder, 3, LIMIT), time.monotonic() + seconds
    while time.monotonic() < end:
        hang = detector.look(time.monotonic())
        if until(hang):
            return hang
        time.sleep(0.1)
    raise AssertionError("nothing was found")


def wait_for_ranks(folder, count):
    watch(folder, lambda hang: len(read_signs(folder, 3)) == count)


def test_a_stopped_process_is_named_and_not_the_one_that_waits_for_it(tmp_path, start):
    waiting, stopped = start(0, naps_in="compute"), start(1)
    wait_for_ranks(tmp_path, 2)
    os.kill(stopped.pid, signal.SIGSTOP)
    hang = watch(tmp_path, lambda hang: hang is not None)
    assert [(sign.rank, sign.pid) for sign in hang.culprits] == [(1, stopped.pid)]
    assert hang.silent == [1]
    assert waiting.is_alive()


def test_a_nap_in_the_loader_is_found_and_stands_in_the_stacks(tmp_path, start):
    napping = start(0, naps_in="data")
    wait_for_ranks(tmp_path, 1)
    hang = watch(tmp_path, lambda hang: hang is not None)
    assert hang.culprits[0].part == "data"
    report = write_stacks(
        tmp_path, hang, lambda sign, number: os.kill(sign.pid, number), lambda: time.sleep(1)
    )
    assert "_be_in_a_part" in report.read_text()
    assert napping.is_alive()


@pytest.mark.parametrize("how", ["SIGSTOP", "a nap in the loader"])
def test_of_two_training_ranks_the_one_that_does_not_arrive_is_named(tmp_path, how, faults):
    dataset = make_dataset(tmp_path / "dataset")
    settings = make_settings(
        dataset,
        duration={"num_steps": 5000},
        workers={"num_workers": 2, "hang_seconds": LONGER_LIMIT},
        batch={"global_batch_size": 4, "micro_batch_size": 2},
        evaluation={"every_steps": 0, "num_rows": 0},
    )
    naps_at = None if how == "SIGSTOP" else 20
    folder = tmp_path / "run"
    arguments = (str(dataset.folder), str(folder), settings, naps_at)
    training = threading.Thread(target=_train_until_killed, args=arguments)
    training.start()
    signs = folder / SIGNS_FOLDER
    try:
        detector, end, hang = HangDetector(signs, 0, LONGER_LIMIT), time.monotonic() + 60, None
        stopped_at = None
        while hang is None:
            assert time.monotonic() < end
            hang = detector.look(time.monotonic())
            ranks = read_signs(signs, 0)
            if how == "SIGSTOP" and stopped_at is None and _progress(ranks) > 40:
                os.kill(ranks[1].pid, signal.SIGSTOP)
                stopped_at = time.monotonic()
            time.sleep(0.05)
        assert [sign.rank for sign in hang.culprits] == [1]
        assert hang.silent == ([1] if how == "SIGSTOP" else [])
        assert stopped_at is None or time.monotonic() - stopped_at < 4 * LONGER_LIMIT
        report = write_stacks(signs, hang, lambda s, n: os.kill(s.pid, n), lambda: time.sleep(1))
        assert "no answer" in report.read_text() or "sleeping_batches" in report.read_text()
        if how != "SIGSTOP":
            faults.add("T7-loader", 1, 1, limit=f"{LONGER_LIMIT:.0f} s")
    finally:
        for sign in read_signs(signs, 0):
            os.kill(sign.pid, signal.SIGKILL)
        training.join()


def _progress(signs):
    return min((sign.progress for sign in signs), default=0) if len(signs) == 2 else 0


def _train_until_killed(*arguments):
    with contextlib.suppress(RankFailedError):
        run_ranks(2, train_with_a_nap, *arguments, timeout_seconds=120)
