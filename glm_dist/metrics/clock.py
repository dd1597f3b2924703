"""Where the wall time goes: laps attributed to named parts, over all attempts of a run."""

import time
from collections.abc import Iterable, Mapping


class Clock:
    """A lap clock; reading it costs nothing and never waits for a device."""

    def __init__(self, earlier: Mapping[str, float] | None = None) -> None:
        """Args: seconds by part of earlier attempts, which the totals go on from."""
        self._totals = dict(earlier or {})
        self._last = time.monotonic()
        self._marked: dict[str, float] = {}
        self.mark()

    def lap(self, part: str) -> None:
        """Attribute the time since the last lap to `part`."""
        now = time.monotonic()
        self._totals[part] = self._totals.get(part, 0.0) + now - self._last
        self._last = now

    def totals(self) -> dict[str, float]:
        """Seconds by part."""
        return dict(self._totals)

    def mark(self) -> None:
        """Begin the interval that `seconds_since_mark` measures."""
        self._marked = dict(self._totals)

    def seconds_since_mark(self, parts: Iterable[str]) -> float:
        """Seconds that went to `parts` since the mark."""
        return sum(self._totals.get(part, 0.0) - self._marked.get(part, 0.0) for part in parts)
