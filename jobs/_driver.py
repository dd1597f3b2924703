"""A long job's two processes: a small parent, and the driver that it starts again when it dies.

Nothing in Ray restarts a driver. The parent imports neither Ray nor torch, so that what kills a
driver, most often memory, does not kill it.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

RESUME_ME = 75
"""Exit code of a run that was asked to stop and has saved (EX_TEMPFAIL of sysexits.h)."""
DRIVER_MARK = "GLM_DIST_DRIVER"
MAX_DEATHS = 5
"""Deaths of the driver, without any progress in between, before its parent gives up."""
_SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)

Main = Callable[[Any, argparse.Namespace], int]


def as_driver(
    main: Main,
    progress: Callable[[Any], object],
    is_short: Callable[[argparse.Namespace], bool] = lambda arguments: arguments.plan,
    further: str = "a new checkpoint",
) -> Main:
    """`main` in a process of its own, watched by this one.

    Args:
        main: the driver.
        progress: gives, of the settings, something that is another where the job has got further.
        is_short: whether such arguments need no such care.
        further: what is lacking where the job has not got further.
    """

    def run(settings: Any, arguments: argparse.Namespace) -> int:
        if is_short(arguments):
            return main(settings, arguments)
        if os.environ.get(DRIVER_MARK) != str(os.getppid()):
            return watch_driver(lambda: progress(settings), further)
        end_with_parent()
        return main(settings, arguments)

    return run


def end_with_parent() -> None:
    """Have the system send SIGTERM to this process when the one that started it is gone."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def watch_driver(progress: Callable[[], object], further: str) -> int:
    """Run this program again as a child, and again while signals kill it; its exit code."""
    deaths, reached = 0, progress()
    environment = {**os.environ, DRIVER_MARK: str(os.getpid())}
    while True:
        driver = subprocess.Popen([sys.executable, *sys.argv], env=environment)
        stop = Forwarder(driver)
        code = driver.wait()
        if code >= 0 or stop.was_asked:
            return code if code >= 0 else 128 - code
        deaths, reached, before = deaths + 1, progress(), reached
        if reached != before:
            deaths = 1
        name = signal.Signals(-code).name
        if deaths > MAX_DEATHS:
            print(
                f"error: {name} ended the driver, the last of {deaths} deaths in a row without "
                f"{further}; where that is memory, give it more",
                file=sys.stderr,
            )
            return 128 - code
        print(f"{name} ended the driver; it starts again", file=sys.stderr, flush=True)


class Forwarder:
    """Passes SIGTERM on to the driver, which saves and ends; Ctrl-C reaches it by itself."""

    def __init__(self, driver: "subprocess.Popen[bytes]") -> None:
        self.was_asked = False
        self._driver = driver
        signal.signal(signal.SIGTERM, self._forward)
        signal.signal(signal.SIGINT, self._wait)

    def _forward(self, *_: object) -> None:
        self.was_asked = True
        with contextlib.suppress(ProcessLookupError):
            self._driver.send_signal(signal.SIGTERM)

    def _wait(self, *_: object) -> None:
        self.was_asked = True


def on_termination(action: Callable[[], None]) -> None:
    """Call `action` for SIGTERM and Ctrl-C, and go on; a second Ctrl-C ends the process at once."""

    def handle(number: int, _: object) -> None:
        print("saving and stopping; the same command again goes on from there", flush=True)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        action()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
