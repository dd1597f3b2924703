"""Who is where: signs of life from every rank that need no collective, and who did not arrive.

No ray here: `launch.py` looks at the signs and ends the processes of a group that hangs.
"""

import contextlib
import faulthandler
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from glm_dist.metrics.clock import Clock

STACK_SIGNAL = signal.SIGUSR1
"""Makes a rank write its threads' stacks, even one whose interpreter is stuck."""
BEATS_PER_LIMIT = 5


@dataclass(frozen=True)
class Sign:
    """What a rank says of itself."""

    rank: int
    attempt: int
    node: str
    """What the launcher knows its machine by."""
    host: str
    pid: int
    beat: int
    """Grows while the process runs."""
    progress: int
    """Grows while it gets somewhere."""
    part: str
    """Where it is, in the words of the clock."""


class Heartbeat:
    """Writes a rank's sign every few seconds, from a thread of its own."""

    def __init__(
        self, folder: Path, rank: int, attempt: int, node: str, clock: Clock, limit_seconds: float
    ) -> None:
        """Args: where signs lie; who this is; what progress is read from; the limit of a hang."""
        self._folder, self._clock = folder, clock
        self._seconds = limit_seconds / BEATS_PER_LIMIT
        self._sign = Sign(rank, attempt, node, socket.gethostname(), os.getpid(), 0, 0, clock.part)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._stacks: IO[str] | None = None

    def __enter__(self) -> "Heartbeat":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stacks = open(stacks_path(self._folder, self._sign), "w")  # noqa: SIM115
        faulthandler.register(STACK_SIGNAL, self._stacks)
        self._write(0)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.unregister(STACK_SIGNAL)
        if self._stacks is not None:
            self._stacks.close()
        for path in (sign_path(self._folder, self._sign), stacks_path(self._folder, self._sign)):
            path.unlink(missing_ok=True)

    def _beat(self) -> None:
        beat = 0
        while not self._ended.wait(self._seconds):
            beat += 1
            with contextlib.suppress(OSError):  # a full disk is no hang: the next beat may do
                self._write(beat)

    def _write(self, beat: int) -> None:
        now = {"beat": beat, "progress": self._clock.progress, "part": self._clock.part}
        path = sign_path(self._folder, self._sign)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({**asdict(self._sign), **now}))
        temporary.replace(path)


def sign_path(folder: Path, sign: Sign) -> Path:
    """Where a rank's sign lies."""
    return folder / f"rank-{sign.rank:05d}.json"


def stacks_path(folder: Path, sign: Sign) -> Path:
    """Where a rank writes its stacks when `STACK_SIGNAL` reaches it."""
    return folder / f"rank-{sign.rank:05d}.stacks"


def read_signs(folder: Path, attempt: int) -> list[Sign]:
    """The signs of an attempt's ranks, in rank order."""
    signs = []
    for path in sorted(folder.glob("rank-*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # just being replaced
            signs.append(Sign(**json.loads(path.read_text())))
    return [sign for sign in signs if sign.attempt == attempt]


@dataclass(frozen=True)
class Hang:
    """A group in which nobody gets anywhere."""

    seconds: float
    signs: list[Sign]
    culprits: list[Sign]
    """Ranks that the others wait for; all of them where none is behind."""
    silent: list[int]
    """Ranks among them that give no sign of life either."""

    def __str__(self) -> str:
        names = ", ".join(self._name(sign) for sign in self.culprits)
        return f"nobody got further for {self.seconds:.0f} s; who did not arrive: {names}"

    def _name(self, sign: Sign) -> str:
        state = "shows no sign of life" if sign.rank in self.silent else f"is in part {sign.part!r}"
        return f"rank {sign.rank} on {sign.host} (process {sign.pid}), which {state}"


class HangDetector:
    """Watches an attempt's signs by its own clock; no two machines' clocks are compared."""

    def __init__(self, folder: Path, attempt: int, limit_seconds: float) -> None:
        self._folder, self._attempt, self._limit = folder, attempt, limit_seconds
        self._seen: dict[int, tuple[int, int]] = {}
        self._beat_at: dict[int, float] = {}
        self._progress_at: float | None = None

    def look(self, now: float) -> Hang | None:
        """The hang there is at `now`, seconds of a monotonic clock; None while things move."""
        signs = read_signs(self._folder, self._attempt)
        for sign in signs:
            beat, progress = self._seen.get(sign.rank, (-1, -1))
            if sign.beat != beat:
                self._beat_at[sign.rank] = now
            if sign.progress != progress or self._progress_at is None:
                self._progress_at = now
            self._seen[sign.rank] = (sign.beat, sign.progress)
        if self._progress_at is None or now - self._progress_at < self._limit:
            return None
        silent = [s for s in signs if now - self._beat_at[s.rank] >= self._limit / 2]
        least = min(sign.progress for sign in signs)
        behind = [sign for sign in signs if sign.progress == least]
        culprits = silent or (behind if len(behind) < len(signs) else signs)
        return Hang(now - self._progress_at, signs, culprits, [s.rank for s in silent])


def write_stacks(
    folder: Path, hang: Hang, send: Callable[[Sign, signal.Signals], None], wait: Callable[[], None]
) -> Path:
    """Ask every rank for its stacks and gather them in one file; its path.

    `send` brings a signal to a rank's process, `wait` gives them a moment to write.
    """
    for sign in hang.signs:
        send(sign, STACK_SIGNAL)
    wait()
    parts = [str(hang)]
    for sign in hang.signs:
        path = stacks_path(folder, sign)
        text = path.read_text() if path.exists() else ""
        where = f"rank {sign.rank} on {sign.host}, process {sign.pid}, in part {sign.part!r}"
        parts.append(f"{where}\n{text or 'no answer: stopped, or its machine is gone'}")
    report = folder.parent / f"hang-{hang.signs[0].attempt:05d}.txt"
    report.write_text("\n\n".join(parts) + "\n")
    return report
