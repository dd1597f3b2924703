#!/usr/bin/env python3
"""A Ray cluster of several nodes on this machine, for as long as a command runs.

    python cluster/local.py --workers 1 -- ray job submit --working-dir . -- jobs/pretrain.py
    python cluster/local.py                           until Ctrl-C

Token authentication is on and everything listens on loopback. Only the processes started here are
ended; other Rays on the machine are left alone.
"""

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

START_SECONDS = 120
STOP_SECONDS = 15


class LocalCluster:
    """A head and some workers; `environment` lets a command find them."""

    def __init__(self, num_workers: int = 0, cpus_per_node: int = 3) -> None:
        self._num_workers, self._cpus_per_node = num_workers, cpus_per_node
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ray = str(Path(sys.executable).with_name("ray"))
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self.gcs_port, self.dashboard_port = _free_ports(2)
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": f"http://127.0.0.1:{self.dashboard_port}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONWARNINGS": "ignore",
        }

    def __enter__(self) -> "LocalCluster":
        try:
            head = ["--head", f"--port={self.gcs_port}", "--dashboard-host=127.0.0.1"]
            head += [f"--dashboard-port={self.dashboard_port}", f"--temp-dir={self._folder}"]
            self._start([*head, "--include-dashboard=true", "--node-ip-address=127.0.0.1"])
            self._wait_for_head()
            for _ in range(self._num_workers):
                self._start([f"--address=127.0.0.1:{self.gcs_port}"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for process in reversed(self._processes):
            _end(process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, options: Sequence[str]) -> None:
        environment = {
            key: value for key, value in self.environment.items() if key != "RAY_ADDRESS"
        }
        command = [self._ray, "start", "--block", f"--num-cpus={self._cpus_per_node}", *options]
        log = open(self._folder / f"start-{len(self._processes)}.log", "wb")  # noqa: SIM115
        self._processes.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def _wait_for_head(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._processes[0].poll() is not None:
                break
            if _answers(f"{self.environment['RAY_ADDRESS']}/api/version", self.environment):
                return
            time.sleep(0.5)
        log = (self._folder / "start-0.log").read_text(errors="replace")
        raise SystemExit(f"Ray did not start on port {self.dashboard_port}:\n{log[-2000:]}")


def _answers(url: str, environment: dict[str, str]) -> bool:
    headers = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and the group that it leads, which is all that it started."""
    for end_with in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, end_with)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def main() -> int:
    """Run the command in a cluster; its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=0, help="nodes besides the head")
    parser.add_argument("--cpus", type=int, default=3, help="logical CPUs of each node")
    parser.add_argument("command", nargs="*", help="what to run; nothing waits for Ctrl-C")
    arguments = parser.parse_args()
    with LocalCluster(arguments.workers, arguments.cpus) as cluster:
        if arguments.command:
            return subprocess.run(arguments.command, env=cluster.environment).returncode
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
            print(f"export {name}={cluster.environment[name]}")
        print("ray job submit --working-dir . -- python jobs/pretrain.py", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
