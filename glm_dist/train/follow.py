"""A run's log lines as they come, read from the file that rank 0 writes."""

import threading
from collections.abc import Callable
from pathlib import Path


class Follower:
    """Shows a run's log lines while it trains, by reading the file that rank 0 writes."""

    def __init__(self, path: Path, show: Callable[[str], None], poll_seconds: float = 0.5) -> None:
        self._path, self._show, self._poll_seconds = path, show, poll_seconds
        self._position = path.stat().st_size if path.exists() else 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        self._show_new()

    def _follow(self) -> None:
        while not self._ended.wait(self._poll_seconds):
            self._show_new()

    def _show_new(self) -> None:
        if not self._path.exists():
            return
        size = self._path.stat().st_size
        self._position = min(self._position, size)  # a resumed run cuts redone lines off
        with open(self._path, "rb") as file:
            file.seek(max(0, self._position - 1))
            data = file.read()
        if self._position:
            # It may have written others since, so that this is the middle of one.
            skipped = data.find(b"\n") + 1
            self._position += max(0, skipped - 1)
            data = data[skipped:] if skipped else b""
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.decode().splitlines():
            self._show(line)
