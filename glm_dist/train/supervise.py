"""Attempt after attempt until a run is finished: what a failure, a stop or a new node leads to.

No ray here. Each attempt is one launch of the workers, given by `launch.py`; what is decided is
decided from files of the run folder, so that a driver that is killed and started again, or another
one on another machine, goes on where the last one stood.
"""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from glm_dist.engine.storage import append_json_line, read_json_lines, write_json
from glm_dist.errors import GlmDistError, LaunchError
from glm_dist.train.attempt import Attempt, decide_attempt, read_ending
from glm_dist.train.settings import PretrainSettings
from glm_dist.train.state import Ending

logger = logging.getLogger(__name__)

STOP_NAME = "STOP"
HOLDER_NAME = "holder.json"
HOLDER_SECONDS = 60.0
"""A holder on another machine that has not shown itself for so long is dead."""
JOURNAL_NAME = "journal.jsonl"
PAUSE_SECONDS = 2.0
"""The first retry after a failure comes at once, the second so long after the start of the attempt
that failed, later ones ever later."""
LONGEST_PAUSE_SECONDS = 60.0
ROOM_SECONDS = 5.0


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended early."""

    text: str
    """For people."""
    signature: str | None = None
    """Error and rows, where it came out of a rank's step: the same twice is no accident."""
    error: GlmDistError | None = None
    """What the user can mend, if it is that; it is raised and not retried."""


class Workers(Protocol):
    """What the supervisor needs of the cluster."""

    def room(self) -> int:
        """Workers the cluster has room for now, this run's own included."""

    def run(self, attempt: Attempt) -> Failure | None:
        """Train until the attempt ends; None when all ranks returned."""


def supervise(
    run_folder: Path,
    settings: PretrainSettings,
    fingerprints: dict[str, str],
    workers: Workers,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Ending:
    """Launch attempts until the run is finished or somebody asked it to stop.

    Raises:
        LaunchError: for too many failures in a row, or the same one twice at the same rows.
        GlmDistError: for what the user can mend.
    """
    journal = Journal(run_folder)
    clear_stop(run_folder)
    failures: list[Failure] = []
    reached = -1
    while True:
        world_size = wait_for_room(settings, workers, sleep)
        attempt = decide_attempt(run_folder, settings, fingerprints, world_size)
        if attempt.train_state.step > reached:
            failures, reached = [], attempt.train_state.step
        state = attempt.train_state
        start = {"step": state.step, "world_size": world_size, "seconds": state.seconds}
        journal.add("attempt", number=attempt.number, **start)
        started = now()
        failure = workers.run(attempt)
        stop = read_stop(run_folder)
        if failure is None:
            ending = read_ending(run_folder, attempt.number)
            assert ending is not None, "rank 0 writes it before it returns"
            reason = stop["reason"] if stop and ending.kind == "stopped" else ending.kind
            journal.add("ended", number=attempt.number, step=ending.step, reason=reason)
            if reason not in ("resize", "rewind"):
                return ending
            clear_stop(run_folder)
            continue
        journal.add("failed", number=attempt.number, failure=failure.text)
        if failure.error is not None:
            raise failure.error
        if stop and stop["reason"] in ("signal", "user"):
            return Ending(attempt.train_state.step, "stopped")
        clear_stop(run_folder)
        failures.append(failure)
        check_failures(failures, settings.workers.max_failures)
        logger.warning("attempt %d failed: %s; the run goes on", attempt.number, failure.text)
        sleep(max(0.0, started + pause_seconds(len(failures)) - now()))


def pause_seconds(failures: int) -> float:
    """Least time between the starts of two attempts after so many failures without progress."""
    return min(LONGEST_PAUSE_SECONDS, PAUSE_SECONDS * (2 ** (failures - 1) - 1))


def wait_for_room(
    settings: PretrainSettings, workers: Workers, sleep: Callable[[float], None]
) -> int:
    """The world size to go on with; where nodes are missing, wait for them to come back.

    Raises:
        LaunchError: when they have not after `workers.wait_minutes`.
    """
    waited = 0.0
    while True:
        try:
            return choose_world_size(settings, workers.room())
        except LaunchError as error:
            if waited >= settings.workers.wait_minutes * 60:
                raise
            if not waited:
                logger.warning("%s; the run waits for them", error)
            sleep(ROOM_SECONDS)
            waited += ROOM_SECONDS


def choose_world_size(settings: PretrainSettings, room: int) -> int:
    """The most workers that fit and share the global batch evenly.

    Raises:
        LaunchError: when not even the fewest fit, with the arithmetic.
    """
    fitting = [size for size in settings.world_sizes if size <= room]
    if fitting:
        return fitting[-1]
    batch = settings.batch
    raise LaunchError(
        f"the cluster has room for {room} workers of {settings.workers.cpus_per_worker:g} CPUs "
        f"beside the row tasks, and the run can be shared by {settings.world_sizes} workers "
        f"(global batch {batch.global_batch_size}, micro-batches of {batch.micro_batch_size}); "
        "add nodes, lower workers.num_workers or workers.cpus_per_worker, or change the batch"
    )


def check_failures(failures: list[Failure], max_failures: int) -> None:
    """Give up where going on would only burn time.

    Raises:
        LaunchError: with what failed.
    """
    last = failures[-1]
    if last.signature and any(last.signature == other.signature for other in failures[:-1]):
        raise LaunchError(
            f"the same error twice at the same rows, so it is no accident: {last.text}"
        )
    if len(failures) > max_failures:
        raise LaunchError(
            f"{len(failures)} failures in a row without a new checkpoint, more than "
            f"workers.max_failures {max_failures}; the last one: {last.text}"
        )


class Journal:
    """What happened to a run, one line an event, over all its drivers; nothing is ever removed."""

    def __init__(self, run_folder: Path) -> None:
        self._path = run_folder / JOURNAL_NAME

    def add(self, event: str, **values: Any) -> None:
        """Append an event with the time of day in seconds."""
        append_json_line(self._path, {"event": event, "time": time.time(), **values})

    def read(self) -> list[dict[str, Any]]:
        """All events, oldest first."""
        return list(read_json_lines(self._path))


def ask_to_stop(run_folder: Path, reason: str) -> None:
    """Make all ranks save and leave at their next step; the first reason given stays."""
    path = run_folder / STOP_NAME
    if not path.exists():
        write_json(path, {"reason": reason})


def read_stop(run_folder: Path) -> dict[str, Any] | None:
    """The request, if there is one; a file that people made may hold anything."""
    path = run_folder / STOP_NAME
    if not path.exists():
        return None
    try:
        return {"reason": str(json.loads(path.read_text())["reason"])}
    except (ValueError, KeyError, TypeError):
        return {"reason": "user"}


def clear_stop(run_folder: Path) -> None:
    """Forget a request that has been met."""
    (run_folder / STOP_NAME).unlink(missing_ok=True)


@contextlib.contextmanager
def holding(run_folder: Path) -> Iterator[None]:
    """Be the one driver of a run; a holder that is provably dead is taken over from.

    Raises:
        LaunchError: naming the holder, where one lives or may live.
    """
    _claim(run_folder)
    try:
        yield
    finally:
        (run_folder / HOLDER_NAME).unlink(missing_ok=True)


def read_holder(run_folder: Path) -> str | None:
    """The process that trains the run, None where there is none or it is provably dead."""
    path = run_folder / HOLDER_NAME
    if not path.exists():
        return None
    holder = json.loads(path.read_text())
    return f"process {holder['pid']} on {holder['host']}" if _may_live(holder, path) else None


def keep_claim(run_folder: Path) -> None:
    """Show other machines that the holder lives; called every few seconds."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(run_folder / HOLDER_NAME)


def _claim(run_folder: Path) -> None:
    holder = read_holder(run_folder)
    if holder is not None:
        raise LaunchError(
            f"{run_folder}: is being trained by {holder}; stop that one first (a file named "
            f"{STOP_NAME} in the run folder does), or wait {HOLDER_SECONDS:.0f} seconds if its "
            "machine is gone"
        )
    me = psutil.Process()
    mine = {"host": socket.gethostname(), "pid": me.pid, "started": me.create_time()}
    write_json(run_folder / HOLDER_NAME, mine)


def _may_live(holder: dict[str, Any], path: Path) -> bool:
    if holder["host"] != socket.gethostname():
        return time.time() - path.stat().st_mtime < HOLDER_SECONDS
    try:
        process = psutil.Process(holder["pid"])
        return process.create_time() == holder["started"] and process.pid != os.getpid()
    except psutil.NoSuchProcess:
        return False
