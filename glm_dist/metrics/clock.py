"""Where the wall time goes: every moment belongs to one named part, over all attempts of a run."""

import time
from collections.abc import Iterable, Mapping


class Clock:
    """Knows in which part the process is; changing parts costs nothing and waits for no device."""

    def __init__(self, part: str, earlier: Mapping[str, float] | None = None) -> None:
        """Args: the part that begins now; seconds by part of earlier attempts, to go on from."""
        self.part, self.progress = part, 0
        self._totals = dict(earlier or {})
        self._last = time.monotonic()
        self._marked: dict[str, float] = {}
        self.mark()

    def enter(self, part: str) -> None:
        """End the present part and begin another."""
        self._settle()
        self.part = part
        self.tick()

    def tick(self) -> None:
        """Say that there was progress within the part."""
        self.progress += 1

    def totals(self) -> dict[str, float]:
        """Seconds by part up to now."""
        self._settle()
        return dict(self._totals)

    def mark(self) -> None:
        """Begin the interval that `seconds_since_mark` measures."""
        self._marked = self.totals()

    def seconds_since_mark(self, parts: Iterable[str]) -> float:
        """Seconds that went to `parts` since the mark."""
        self._settle()
        return sum(self._totals.get(part, 0.0) - self._marked.get(part, 0.0) for part in parts)

    def _settle(self) -> None:
        now = time.monotonic()
        self._totals[self.part] = self._totals.get(self.part, 0.0) + now - self._last
        self._last = now
