"""What follows an attempt: another one, an end, or a clear no. Workers are played by a script."""

import json
import os
import socket

import psutil
import pytest
from train_scenarios import make_dataset, make_settings

from glm_dist.engine.storage import write_json
from glm_dist.errors import DataError, LaunchError
from glm_dist.train.attempt import (
    attempts_folder,
    claim_run_folder,
    read_attempts,
    write_ending,
)
from glm_dist.train.settings import PretrainSettings
from glm_dist.train.state import Ending
from glm_dist.train.supervise import (
    HOLDER_NAME,
    STOP_NAME,
    Failure,
    Journal,
    ask_to_stop,
    choose_world_size,
    holding,
    read_stop,
    supervise,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def settings(dataset):
    return make_settings(
        dataset,
        batch={"global_batch_size": 12, "micro_batch_size": 1},
        workers={"num_workers": {"min": 1, "max": 4}, "max_failures": 3},
    )


class ScriptedWorkers:
    """Attempts that end as the script says; the room of the cluster follows its own script."""

    def __init__(self, folder, endings, room=(4,)):
        self.folder, self.endings, self.rooms = folder, list(endings), list(room)
        self.sizes = []

    def room(self):
        return self.rooms.pop(0) if len(self.rooms) > 1 else self.rooms[0]

    def run(self, attempt):
        self.sizes.append(attempt.world_size)
        ending = self.endings.pop(0)
        if isinstance(ending, Failure):
            return ending
        if ending == "resize":
            ask_to_stop(self.folder, "resize")
            ending = Ending(5, "stopped")
        write_ending(self.folder, attempt.number, ending)
        return None


def run(folder, settings, workers):
    folder.mkdir(exist_ok=True)
    claim_run_folder(folder, settings)
    return supervise(folder, settings, {}, workers, sleep=lambda seconds: None)


FINISHED = Ending(12, "finished")


def test_deaths_lead_to_another_attempt_and_all_is_journalled(tmp_path, settings):
    workers = ScriptedWorkers(tmp_path, [Failure("rank 1 died"), Failure("rank 0 died"), FINISHED])
    assert run(tmp_path, settings, workers) == FINISHED
    assert [attempt.number for attempt in read_attempts(tmp_path)] == [0, 1, 2]
    events = [event["event"] for event in Journal(tmp_path).read()]
    assert events == ["attempt", "failed", "attempt", "failed", "attempt", "ended"]


def test_a_run_follows_the_room_of_its_cluster(tmp_path, settings):
    """Room for 5 where 4 are allowed; then a node goes; then two come."""
    workers = ScriptedWorkers(
        tmp_path, [Failure("a node is gone"), "resize", FINISHED], room=(5, 1, 3)
    )
    assert run(tmp_path, settings, workers) == FINISHED
    assert workers.sizes == [4, 1, 3]
    assert not (tmp_path / STOP_NAME).exists()


def test_a_run_without_room_waits_for_nodes_and_not_for_ever(tmp_path, settings):
    workers = ScriptedWorkers(tmp_path, [Failure("nodes are gone"), FINISHED], room=(4, 0, 0, 2))
    assert run(tmp_path, settings, workers) == FINISHED
    assert workers.sizes == [4, 2]
    with pytest.raises(LaunchError, match="room for 0 workers"):
        run(tmp_path / "other", settings, ScriptedWorkers(tmp_path, [], room=(0,)))


def test_no_room_and_no_even_share_are_refused_with_the_arithmetic(settings):
    with pytest.raises(LaunchError, match=r"room for 0 workers.*\[1, 2, 3, 4\].*global batch 12"):
        choose_world_size(settings, 0)
    values = {"batch": {"global_batch_size": 7, "micro_batch_size": 2}}
    with pytest.raises(ValueError, match="neither of 2 to 3 workers x micro-batches of 2 do"):
        PretrainSettings(**values, workers={"num_workers": {"min": 2, "max": 3}})


def test_a_stop_that_people_asked_for_ends_the_run(tmp_path, settings):
    class Asked(ScriptedWorkers):
        def run(self, attempt):
            (tmp_path / STOP_NAME).touch()
            return super().run(attempt)

    ending = run(tmp_path, settings, Asked(tmp_path, [Ending(7, "stopped")]))
    assert (ending.step, ending.kind) == (7, "stopped")
    assert read_stop(tmp_path)["reason"] == "user"
    workers = ScriptedWorkers(tmp_path, [FINISHED])
    assert run(tmp_path, settings, workers) == FINISHED


def test_the_same_error_at_the_same_rows_twice_is_no_accident(tmp_path, settings, faults):
    bug = Failure("step 3, rows [9]: ValueError: x", "step 3, rows [9]: ValueError: x")
    workers = ScriptedWorkers(tmp_path, [bug, Failure("rank 1 died"), bug, FINISHED])
    with pytest.raises(LaunchError, match=r"twice at the same rows.*rows \[9\]"):
        run(tmp_path, settings, workers)
    assert len(read_attempts(tmp_path)) == 3
    faults.add("T15", 1, 1, launches=3)


def test_failures_without_progress_end_the_run_and_progress_forgives_them(tmp_path, settings):
    dead = Failure("rank 1 died")
    with pytest.raises(LaunchError, match="4 failures in a row without a new checkpoint"):
        run(tmp_path, settings, ScriptedWorkers(tmp_path, [dead] * 9))
    assert len(read_attempts(tmp_path)) == 4


def test_retries_come_at_once_and_then_ever_later_counted_from_the_attempts_start(
    tmp_path, settings
):
    """An attempt that lasted longer than the pause has had it; one that died at once has not."""
    clock, pauses = [0.0], []

    class Lasting(ScriptedWorkers):
        def run(self, attempt):
            clock[0] += seconds.pop(0)
            return super().run(attempt)

    dead = Failure("rank 1 died")
    seconds = [1, 30, 4, 1]
    workers = Lasting(tmp_path, [dead, dead, dead, FINISHED])
    claim_run_folder(tmp_path, settings)
    supervise(tmp_path, settings, {}, workers, sleep=pauses.append, now=lambda: clock[0])
    assert pauses == [0, 0, 2]  # of 0, 2 and 6


def test_what_the_user_can_mend_is_raised_at_once(tmp_path, settings):
    failure = Failure("wrong rows", error=DataError("wrong rows"))
    with pytest.raises(DataError, match="wrong rows"):
        run(tmp_path, settings, ScriptedWorkers(tmp_path, [failure, FINISHED]))


def hold(folder):
    with holding(folder):
        return json.loads((folder / HOLDER_NAME).read_text())["pid"]


def test_two_drivers_are_kept_apart_and_a_dead_one_is_taken_over_from(tmp_path):
    assert hold(tmp_path) == os.getpid()
    assert not (tmp_path / HOLDER_NAME).exists()
    parent = psutil.Process().parent()
    holder = {"host": socket.gethostname(), "pid": parent.pid}
    write_json(tmp_path / HOLDER_NAME, {**holder, "started": parent.create_time()})
    with pytest.raises(LaunchError, match=f"trained by process {parent.pid} on"):
        hold(tmp_path)
    write_json(tmp_path / HOLDER_NAME, {**holder, "started": parent.create_time() - 5})
    hold(tmp_path)  # that process has ended, another one has its number
    write_json(tmp_path / HOLDER_NAME, {"host": "elsewhere", "pid": 1, "started": 0})
    with pytest.raises(LaunchError, match="on elsewhere"):
        hold(tmp_path)
    os.utime(tmp_path / HOLDER_NAME, (0, 0))
    hold(tmp_path)  # it has not shown itself for long


def test_two_drivers_that_start_at_once_cannot_both_have_an_attempt(tmp_path, settings):
    claim_run_folder(tmp_path, settings)
    taken = attempts_folder(tmp_path) / "attempt-00000.json"

    class Racing(ScriptedWorkers):
        def room(self):
            taken.write_text(json.dumps({}))  # between our look and our decision
            return 4

    import glm_dist.train.attempt as attempt

    before = attempt.newest_number
    attempt.newest_number = lambda folder: -1
    try:
        with pytest.raises(LaunchError, match="another driver has just started"):
            supervise(tmp_path, settings, {}, Racing(tmp_path, []))
    finally:
        attempt.newest_number = before
