"""What a run's wall time went to, over all its attempts: steps that lasted, and everything else.

It stands apart as a pure function of two records: the driver's journal, which knows when attempts
began and ended, and rank 0's events, which know where its clock stood at each checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STEPS, REDONE, START, RESTART = "steps", "redone steps", "start-up", "restart"
PART_NAMES = {
    "compute": STEPS,
    "data": "data wait",
    "checkpoint": "checkpoint stall",
    "evaluation": "evaluation",
    "start-up": START,
}
"""Parts of the clock as parts of a run's account; all others are "other"."""
STOPS = ("finished", "stopped", "signal", "user")
"""Endings after which nobody waits for the run to go on."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Account:
    """Seconds of a run by part; the time between a stop and the next submission is in none."""

    seconds: dict[str, float]

    @property
    def wall(self) -> float:
        """All of them."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of the steps whose work lasted, in [0, 1]."""
        return self.seconds[STEPS] / self.wall if self.wall else 0.0


def account(
    journal: Sequence[Record], events: Sequence[Record], now: float | None = None
) -> Account:
    """Sort a run's wall time, up to `now` where its last attempt still runs.

    An attempt lasts as far as the checkpoint that the next ones went on from; what it did after
    that is done again. Args: lines of journal.jsonl and of events.jsonl, in their order.
    """
    seconds = dict.fromkeys((STEPS, REDONE, *PART_NAMES.values(), RESTART, "other"), 0.0)
    attempts = _attempts(journal, events, now)
    for number, attempt in enumerate(attempts):
        resumed_at = min((later.step for later in attempts[number + 1 :]), default=None)
        kept = attempt.last_checkpoint(resumed_at)
        lasting_end = attempt.start if kept is None else kept["time"]
        if kept is not None:
            lasted = _difference(kept["seconds"], attempt.clock_at_start)
            for part, spent in lasted.items():
                seconds[PART_NAMES.get(part, "other")] += spent
            seconds[START] += max(0.0, kept["time"] - attempt.start - sum(lasted.values()))
        after = "other" if attempt.reason in (*STOPS, "resize") else REDONE
        seconds[after] += max(0.0, attempt.end - lasting_end)
        if number and attempts[number - 1].reason not in STOPS:
            seconds[RESTART] += max(0.0, attempt.start - attempts[number - 1].end)
    return Account(seconds)


@dataclass(frozen=True)
class _Attempt:
    step: int
    start: float
    end: float
    reason: str | None
    """None for one that failed or whose driver died."""
    clock_at_start: Mapping[str, float]
    checkpoints: list[Record]

    def last_checkpoint(self, resumed_at: int | None) -> Record | None:
        kept = [c for c in self.checkpoints if resumed_at is None or c["step"] <= resumed_at]
        return kept[-1] if kept else None


def _attempts(
    journal: Sequence[Record], events: Sequence[Record], now: float | None
) -> list[_Attempt]:
    starts = [line for line in journal if line["event"] == "attempt"]
    found = []
    for index, start in enumerate(starts):
        number = start["number"]
        ends = [line for line in journal if line.get("number") == number and line is not start]
        own = [event for event in events if event.get("attempt") == number]
        is_last = index + 1 == len(starts)
        if ends:
            end = ends[0]["time"]
        elif is_last and now is not None:
            end = now
        else:  # its driver died: the last that was heard of it
            end = max([start["time"], *(event["time"] for event in own)])
        found.append(
            _Attempt(
                step=start["step"],
                start=start["time"],
                end=end,
                reason=ends[0].get("reason") if ends else None,
                clock_at_start=start["seconds"],
                checkpoints=[event for event in own if event["event"] == "checkpoint"],
            )
        )
    return found


def _difference(later: Mapping[str, float], earlier: Mapping[str, float]) -> dict[str, float]:
    return {part: spent - earlier.get(part, 0.0) for part, spent in later.items()}
