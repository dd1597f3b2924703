"""Runs a measurement in a process of its own, as what it measures would run.

It stands apart because all benchmarks do so: nothing that another measurement loaded, warmed or
left behind counts.
"""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from types import MappingProxyType
from typing import Any
from unittest import mock

from _driver import end_with_parent

from glm_dist.config import output_path


def apart(
    function: Callable[..., Any],
    *arguments: Any,
    num_threads: int,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """What `function` gives in a fresh process with that many threads of torch."""
    context = multiprocessing.get_context("spawn")
    with mock.patch.dict(os.environ, environment), ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_start, function, arguments, num_threads).result()


def _start(function: Callable[..., Any], arguments: tuple[Any, ...], num_threads: int) -> Any:
    """In the process that measures; others' chatter goes to a log."""
    import torch

    end_with_parent()
    torch.set_num_threads(num_threads)
    log = output_path("benchmarks/contestants.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return function(*arguments)
