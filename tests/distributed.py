"""Runs a function on several gloo ranks, each a process of its own, on this machine."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


class RankFailedError(AssertionError):
    """A rank raised or died; the text is its traceback or exit code."""


def run_ranks(
    num_ranks: int, function: Callable[..., Any], *arguments: Any, timeout_seconds: float = 240
) -> list[Any]:
    """`function(*arguments)` on each rank of a new process group; the results in rank order.

    The function lives in an importable module. Processes left over are ended, only our own.

    Raises:
        RankFailedError: as soon as one rank fails, or when the time is over.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks: list[tuple[BaseProcess, Connection]] = []
        try:
            for rank in range(num_ranks):
                receiver, sender = context.Pipe(duplex=False)
                call = (rank, num_ranks, str(Path(folder) / "store"), sender, function, arguments)
                process = context.Process(target=_run_rank, args=call)
                with _single_threaded():
                    process.start()
                sender.close()
                ranks.append((process, receiver))
            return _collect(ranks, timeout_seconds)
        finally:
            for process, _ in ranks:
                process.kill()
                process.join()


def _collect(ranks: list[tuple[BaseProcess, Connection]], timeout_seconds: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(ranks):
        pending = [receiver for rank, (_, receiver) in enumerate(ranks) if rank not in results]
        ready = wait(pending, timeout_seconds)
        if not ready:
            raise RankFailedError(f"nothing came for {timeout_seconds} s; only {list(results)} did")
        for rank, (process, receiver) in enumerate(ranks):
            if receiver in ready:
                results[rank] = _receive(rank, process, receiver)
    return [results[rank] for rank in range(len(ranks))]


def _receive(rank: int, process: BaseProcess, receiver: Connection) -> Any:
    try:
        is_good, value = receiver.recv()
    except EOFError:
        process.join()
        raise RankFailedError(f"rank {rank} ended with exit code {process.exitcode}") from None
    if not is_good:
        raise RankFailedError(f"rank {rank}:\n{value}")
    return value


def _run_rank(
    rank: int,
    num_ranks: int,
    store: str,
    sender: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks
        )
        result = (True, function(*arguments))
    except BaseException:
        result = (False, traceback.format_exc())
    sender.send(result)
    sender.close()
    # Not through the interpreter's shutdown, which would wait for ranks that failed.
    os._exit(0)


class _single_threaded:  # noqa: N801
    """OMP_NUM_THREADS=1 for processes started inside."""

    def __enter__(self) -> None:
        self._before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = self._before
