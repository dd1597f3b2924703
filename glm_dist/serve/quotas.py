"""How much a key may use, and whose turn it is.

It stands apart from the keys, which say who asks, and is kept by each front on its own: with
several fronts a key has each one's budget.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from glm_dist.serve.errors import ApiError

Clock = Callable[[], float]


class Bucket:
    """An amount a minute, refilled evenly; what is known only afterwards may overdraw it."""

    def __init__(self, per_minute: int, clock: Clock = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._level, self._at = float(per_minute), clock()

    @property
    def level(self) -> float:
        """What is left; below 0 where it is overdrawn."""
        now = self._clock()
        gained = (now - self._at) * self.per_minute / 60
        self._level, self._at = min(self.per_minute, self._level + gained), now
        return self._level

    def spend(self, amount: float) -> None:
        """Take it out, be it there or not."""
        self._level = self.level - amount

    def seconds_until(self, amount: float) -> float:
        """Until so much is there; 0 where it is."""
        return max(0.0, (amount - self.level) * 60 / self.per_minute)

    def headers(self, name: str) -> dict[str, str]:
        """Limit, rest and time until it is full, as OpenAI's headers say them."""
        return {
            f"x-ratelimit-limit-{name}": str(self.per_minute),
            f"x-ratelimit-remaining-{name}": str(max(0, int(self.level))),
            f"x-ratelimit-reset-{name}": duration(self.seconds_until(self.per_minute)),
        }


class Budget:
    """What one key may use; null for as much as it likes."""

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_running: int | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._requests = Bucket(requests_per_minute, clock) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute, clock) if tokens_per_minute else None
        self._max_running, self._running = max_running, 0

    @property
    def headers(self) -> dict[str, str]:
        """Of every reply to this key."""
        found: dict[str, str] = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            found |= bucket.headers(name) if bucket else {}
        return found

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request, from its coming to its end.

        Raises:
            ApiError: 429 when this key has asked often enough, or has enough in work.
        """
        if self._max_running is not None and self._running >= self._max_running:
            raise ApiError(
                429,
                f"this key has {self._running} requests in work, and may have no more; wait for "
                "one to end (each front counts on its own)",
                code="concurrency_exceeded",
            )
        if self._requests is not None:
            _check(self._requests, 1, "requests")
            self._requests.spend(1)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def spend_prompt(self, tokens: int) -> None:
        """Take the tokens of a prompt, before it is computed.

        Raises:
            ApiError: 429 when they are not there.
        """
        if self._tokens is not None:
            _check(self._tokens, tokens, "tokens")
            self._tokens.spend(tokens)

    def spend_answer(self, tokens: int) -> None:
        """Take the tokens of an answer, now that they are known."""
        if self._tokens is not None:
            self._tokens.spend(tokens)


class FairOrder:
    """Turns among keys: whoever has little in work goes before the backlog of whoever has much.

    Start-time fair queueing: a request's turn is one after its key's last one, and never before the
    earliest turn that is still in work, so that nobody waits for ever and nobody saves up.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._in_work: Counter[int] = Counter()
        self._now = 0

    @contextmanager
    def turn(self, key: str) -> Iterator[int]:
        """The turn of a request while it is in work; smaller goes first."""
        turn = max(self._now, self._last.get(key, -1) + 1)
        self._last[key] = turn
        self._in_work[turn] += 1
        try:
            yield turn
        finally:
            self._leave(turn)

    def _leave(self, turn: int) -> None:
        self._in_work[turn] -= 1
        if not self._in_work[turn]:
            del self._in_work[turn]
        if self._in_work:
            self._now = min(self._in_work)
        else:
            self._now, self._last = 0, {}


def duration(seconds: float) -> str:
    """As OpenAI's headers have it: 6m0s, 1.5s, 20ms."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"


def _check(bucket: Bucket, amount: float, name: str) -> None:
    if amount > bucket.per_minute:
        raise ApiError(
            429,
            f"this takes {amount} {name}, and this key has {bucket.per_minute} a minute; ask for "
            "less at once",
            code="rate_limit_exceeded",
            headers={"x-should-retry": "false"},
        )
    seconds = bucket.seconds_until(amount)
    if seconds:
        raise ApiError(
            429,
            f"this key has used its {bucket.per_minute} {name} a minute at this front; try "
            f"again in {duration(seconds)}",
            code="rate_limit_exceeded",
            headers={
                "retry-after": str(min(120, int(seconds) + 1)),
                "retry-after-ms": str(min(120_000, round(seconds * 1000))),
            },
        )
