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
import time
from collections.abc import Callable
from typing import Any

RESUME_ME = 75
"""Exit code of a run that was asked to stop and has saved (EX_TEMPFAIL of sysexits.h)."""
DRIVER_MARK = "GLM_DIST_DRIVER"
QUICK_SECONDS, MAX_QUICK_DEATHS = 120.0, 3
_SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)

Main = Callable[[Any, argparse.Namespace], int]


def as_driver(main: Main) -> Main:
    """`main` in a process of its own, watched by this one; `--plan` needs no such care."""

    def run(settings: Any, arguments: argparse.Namespace) -> int:
        if arguments.plan:
            return main(settings, arguments)
        if os.environ.get(DRIVER_MARK) != str(os.getppid()):
            return watch_driver()
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        return main(settings, arguments)

    return run


def watch_driver() -> int:
    """Run this program again as a child, and again while signals kill it; its exit code."""
    quick_deaths = 0
    environment = {**os.environ, DRIVER_MARK: str(os.getpid())}
    while True:
        started = time.monotonic()
        driver = subprocess.Popen([sys.executable, *sys.argv], env=environment)
        stop = Forwarder(driver)
        code = driver.wait()
        if code >= 0 or stop.was_asked:
            return code if code >= 0 else 128 - code
        quick_deaths = quick_deaths + 1 if time.monotonic() - started < QUICK_SECONDS else 1
        name = signal.Signals(-code).name
        if quick_deaths > MAX_QUICK_DEATHS:
            print(
                f"error: {name} ended the driver {quick_deaths} times within {QUICK_SECONDS:.0f} "
                "seconds of its start; where that is memory, give it more",
                file=sys.stderr,
            )
            return 128 - code
        print(f"{name} ended the driver; it starts again and resumes", file=sys.stderr, flush=True)


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
