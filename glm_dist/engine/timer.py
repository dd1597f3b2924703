"""Time of forward passes alone: what a rank needs by itself, before it waits for any other."""

import time
from types import TracebackType

import torch


class ForwardTimer:
    """Adds up the time of what runs inside it, on a GPU by its events, so that nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = self._start = 0.0

    def __enter__(self) -> None:
        if self._is_cuda:
            self._events.append(tuple(torch.cuda.Event(enable_timing=True) for _ in "ab"))  # type: ignore[arg-type]
            self._events[-1][0].record()
        else:
            self._start = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_cuda:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._start

    def take(self) -> float:
        """Seconds since they were last taken; on a GPU it waits for the last of them."""
        for first, last in self._events:
            last.synchronize()
            self._seconds += first.elapsed_time(last) / 1000
        self._events.clear()
        taken, self._seconds = self._seconds, 0.0
        return taken
