#!/usr/bin/env python3
"""A Ray cluster of several nodes on this machine: until Ctrl-C, or for as long as a command runs.

    python cluster/local.py --workers 1
    python cluster/local.py --workers 1 -- ray job submit --working-dir . -- jobs/pretrain.py

It stands apart from the library, which joins a cluster and never starts one of several nodes. Token
authentication is on, the dashboard listens on loopback, and at the end only the processes that were
started here are ended: other Rays on the machine are left alone, which `ray stop` would not do.
"""

import argparse
import contextlib
import json
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

import psutil

LOOPBACK = "127.0.0.1"
START_SECONDS = 180  # a loaded machine of two cores has needed more than a minute
STOP_SECONDS = 20
POLL_SECONDS = 0.3
SHOWN_VARIABLES = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")


class LocalCluster:
    """A head and some workers; a command run with `environment` finds them.

    Args:
        num_workers: nodes besides the head.
        cpus_per_node: logical CPUs that each node offers, whatever the machine has.
        head_cpus: the same of the head alone, where it differs; 0 keeps work off it.
    """

    def __init__(
        self, num_workers: int = 0, cpus_per_node: int = 3, head_cpus: int | None = None
    ) -> None:
        self._num_workers, self._cpus_per_node = num_workers, cpus_per_node
        self._head_cpus = cpus_per_node if head_cpus is None else head_cpus
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ray = str(Path(sys.executable).with_name("ray"))
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray's sockets lie in it
        self._gcs_port, self._dashboard_port = free_ports(2)
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_ADDRESS": f"http://{LOOPBACK}:{self._dashboard_port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(write_token(self.folder / "token")),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": str(START_SECONDS),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nobody waits for a node that ends
            "PYTHONWARNINGS": "ignore",
        }
        self.environment.pop("RAY_AUTH_TOKEN", None)  # it would win over the path

    def __enter__(self) -> "LocalCluster":
        try:
            self._start_head()
            self._wait_for_nodes(1)
            for _ in range(self._num_workers):
                address = f"--address={LOOPBACK}:{self._gcs_port}"
                self._start_node(address, f"--num-cpus={self._cpus_per_node}")
            self._wait_for_nodes(1 + self._num_workers)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        end(self._processes)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_head(self) -> None:
        [client_port] = free_ports(1)  # the default is one port for all Rays of a machine
        self._start_node(
            "--head",
            f"--num-cpus={self._head_cpus}",
            f"--port={self._gcs_port}",
            f"--ray-client-server-port={client_port}",
            "--include-dashboard=true",
            f"--dashboard-host={LOOPBACK}",
            f"--dashboard-port={self._dashboard_port}",
        )

    def _start_node(self, *options: str) -> None:
        environment = {**self.environment}
        del environment["RAY_ADDRESS"]  # `ray start` would take it for a cluster to join
        node = len(self._processes)
        # An agent whose port is taken by another Ray's stays silent, and no job can be submitted.
        [agent_port] = free_ports(1)
        command = [self._ray, "start", "--block", f"--node-ip-address={LOOPBACK}"]
        command += [f"--dashboard-agent-listen-port={agent_port}"]
        # Nodes that share a folder unpack a job's files over each other.
        command += [f"--temp-dir={self.folder / str(node)}"]
        with open(self._log(node), "wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [*command, *options],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for us, who then end the nodes in order
                )
            )

    def _log(self, node: int) -> Path:
        return self.folder / f"node-{node}.log"

    def _wait_for_nodes(self, count: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            for node, process in enumerate(self._processes):
                if process.poll() is not None:
                    raise SystemExit(f"Ray did not start:\n{self._end_of_log(node)}")
            if self.num_nodes() >= count:
                return
            time.sleep(POLL_SECONDS)
        raise SystemExit(
            f"{self.num_nodes()} of {count} nodes are up after {START_SECONDS} seconds:\n"
            + self._end_of_log(count - 1)
        )

    def _end_of_log(self, node: int) -> str:
        return self._log(node).read_text(errors="replace")[-2000:]

    def num_nodes(self) -> int:
        """Nodes that are alive and take jobs; 0 while the dashboard does not answer."""
        try:
            answer = json.loads(self.get("/nodes?view=summary"))
        except (urllib.error.URLError, OSError, ValueError):
            return 0
        nodes = answer["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" and "agent" in node for node in nodes)

    def get(self, path: str) -> bytes:
        """What the dashboard answers to a request that carries the token."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(
            self.environment["RAY_ADDRESS"] + path, headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())

    def started(self) -> list[psutil.Process]:
        """The processes of the nodes as they are now, those they started included."""
        return trees(self._processes)


def write_token(path: Path) -> Path:
    """A new secret in a file that only this user reads."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((LOOPBACK, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def trees(processes: Sequence[subprocess.Popen[bytes]]) -> list[psutil.Process]:
    """The processes and all that descend from them."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            found += [root, *root.children(recursive=True)]
    return found


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let nodes end themselves and what they started, then kill what is left of it."""
    started = trees(processes)  # read first: orphans could not be told from other people's
    for process in reversed(processes):
        process.terminate()
    for process in _wait_until_ended(started):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _wait_until_ended(started)
    for process in processes:
        process.poll()


def _wait_until_ended(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    deadline = time.monotonic() + STOP_SECONDS
    while (alive := [one for one in processes if is_alive(one)]) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return alive


def is_alive(process: psutil.Process) -> bool:
    """Whether this very process runs; a zombie, or another one under its id, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main() -> int:
    """Run the command in a cluster, or wait for Ctrl-C; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=0, help="nodes besides the head")
    parser.add_argument("--cpus", type=int, default=3, help="logical CPUs of each node")
    parser.add_argument("command", nargs="*", help="what to run; without it, wait for Ctrl-C")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave as Ctrl-C does
    try:
        with LocalCluster(arguments.workers, arguments.cpus) as cluster:
            if arguments.command:
                return subprocess.run(arguments.command, env=cluster.environment).returncode
            print(_directions(cluster), flush=True)
            signal.pause()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _directions(cluster: LocalCluster) -> str:
    lines = [f"{cluster.num_nodes()} nodes are up; Ctrl-C ends them. In another terminal:", ""]
    lines += [f"export {name}={cluster.environment[name]}" for name in SHOWN_VARIABLES]
    lines.append("ray job submit --working-dir . -- python jobs/pretrain.py")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
