"""What HTTP and Ray add to an engine: the same requests asked of it directly and over the wire.

Open loop: requests come by a Poisson process, whether or not those before are answered, and each
notes when its first and every later token came. Closed loop: so many clients ask one after the
other, for throughput. The engine alone and every way through Ray Serve take turns in one run.
"""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from pydantic import Field

from glm_dist.config import Settings

ROOT = Path(__file__).resolve().parents[1]
ALONE = "engine"
SERVED = {
    f"{proxy}, front {front}": {"proxy": proxy, "front": front}
    for proxy in ("haproxy", "ray")
    for front in ("off", "on")
}
"""Ways through Ray Serve, with their settings; the first is the shortest."""
PATHS = (ALONE, *SERVED)
ONLINE_FIGURES = {"online", "http_ttft_ms_added", "http_throughput_share"}
"""Names of what `online` finds."""
PERCENTILES = (50, 90, 99)
LONGEST_LINE = 1 << 20


class OnlineSettings(Settings):
    """Requests of random tokens, all with as many tokens to generate as they say."""

    num_requests: int = Field(60, ge=2)
    """Requests of the open loop, and of the closed one."""
    prompt_tokens: tuple[int, int] = (16, 128)
    """Shortest and longest prompt."""
    answer_tokens: tuple[int, int] = (16, 64)
    """Shortest and longest answer."""
    share_of_peak: float = Field(0.5, gt=0)
    """Arrivals a second, as a share of what the engine alone finishes a second in a closed loop."""
    num_clients: int = Field(32, ge=1)
    """Clients of the closed loop."""
    num_threads: int = Field(1, ge=1)
    """Threads of torch."""
    turns: int = Field(3, ge=1)
    """Each path is measured so often, by turns; medians count."""
    seed: int = 0


@dataclass
class Asked:
    """One request, and when its tokens came, in seconds from its arrival."""

    prompt: list[int]
    num_tokens: int
    times: list[float] = field(default_factory=list)


Ask: TypeAlias = Callable[[Asked], Awaitable[None]]
"""Asks and notes the times."""


def online(folder: Path, settings: OnlineSettings) -> dict[str, Any]:
    """Times and throughputs of all paths, and what HTTP and Ray add.

    Args:
        folder: a model folder.
        settings: the load.

    Returns:
        By path the medians over all turns of the percentiles of milliseconds to the first token
        (`ttft_ms`) and between two tokens (`between_ms`), and `tokens_per_second` of the closed
        loop, all under `online`; `http_ttft_ms_added` and `http_throughput_share` of the shortest
        path against the engine alone, and under `online.added` those of each.
    """
    from glm_dist.metrics.provenance import provenance

    turns: dict[str, list[dict[str, Any]]] = {path: [] for path in PATHS}
    rate = 0.0
    for _ in range(settings.turns):
        for path in PATHS:
            with opened(path, folder, settings) as run:
                closed = run(closed_loop, settings)
                if not rate:
                    rate = settings.share_of_peak * closed["requests_per_second"]
                turns[path].append({**closed, **run(open_loop, settings, rate)})
    paths = {path: medians(found) for path, found in turns.items()}
    costs = {path: added(paths[path], paths[ALONE]) for path in SERVED}
    load = {"arrivals_per_second": rate, "settings": settings.model_dump(mode="json")}
    found = {"paths": paths, "added": costs, **load, "origin": provenance()}
    return {**next(iter(costs.values())), "online": found}


def added(served: dict[str, Any], alone: dict[str, Any]) -> dict[str, float]:
    """What a path costs beside the engine alone."""
    return {
        "http_ttft_ms_added": served["ttft_ms"]["p50"] - alone["ttft_ms"]["p50"],
        "http_throughput_share": served["tokens_per_second"] / alone["tokens_per_second"],
    }


def medians(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure over all turns."""
    first = turns[0]
    return {
        name: medians([turn[name] for turn in turns])
        if isinstance(value, dict)
        else float(np.median([turn[name] for turn in turns]))
        for name, value in first.items()
    }


async def closed_loop(ask: Ask, requests: list[Asked], settings: OnlineSettings) -> dict[str, Any]:
    """So many clients, each with one request at a time."""
    waiting = iter(requests)

    async def client() -> None:
        for request in waiting:
            await ask(request)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(settings.num_clients)))
    seconds = time.perf_counter() - start
    tokens = sum(request.num_tokens for request in requests)
    return {"tokens_per_second": tokens / seconds, "requests_per_second": len(requests) / seconds}


async def open_loop(
    ask: Ask, requests: list[Asked], settings: OnlineSettings, rate: float
) -> dict[str, Any]:
    """Arrivals by a Poisson process of this rate."""
    rng = np.random.default_rng(settings.seed + 1)
    gaps = rng.exponential(1 / rate, size=len(requests))
    tasks: list[asyncio.Task[None]] = []
    for request, gap in zip(requests, gaps, strict=True):
        tasks.append(asyncio.create_task(ask(request)))  # type: ignore[arg-type]
        await asyncio.sleep(gap)
    await asyncio.gather(*tasks)
    firsts = [request.times[0] for request in requests]
    between = np.concatenate([np.diff(request.times) for request in requests])
    return {"ttft_ms": percentiles(firsts), "between_ms": percentiles(between)}


def percentiles(seconds: Any) -> dict[str, float]:
    """In milliseconds."""
    return {f"p{rank}": 1e3 * float(np.percentile(seconds, rank)) for rank in PERCENTILES}


def requests_of(folder: Path, settings: OnlineSettings) -> list[Asked]:
    """The same for every path."""
    from glm_dist.tokenizer import Tokenizer

    tokenizer, rng = Tokenizer.load(folder), np.random.default_rng(settings.seed)
    plain = np.setdiff1d(np.arange(tokenizer.vocab_size), tokenizer.special_ids)
    return [
        Asked(
            rng.choice(plain, size=rng.integers(*settings.prompt_tokens, endpoint=True)).tolist(),
            int(rng.integers(*settings.answer_tokens, endpoint=True)),
        )
        for _ in range(settings.num_requests)
    ]


Loop: TypeAlias = Callable[..., Awaitable[dict[str, Any]]]


@contextlib.contextmanager
def opened(path: str, folder: Path, settings: OnlineSettings) -> Iterator[Callable[..., Any]]:
    """Runs a loop against a path, once it is warm."""
    with contextlib.ExitStack() as stack:
        if path == ALONE:
            ask = stack.enter_context(engine_alone(folder, settings))
        else:
            ask = stack.enter_context(served(path, folder, settings))

        def run(loop: Loop, settings: OnlineSettings, *arguments: Any) -> Any:
            return asyncio.run(loop(ask, requests_of(folder, settings), settings, *arguments))  # type: ignore[arg-type]

        run(closed_loop, settings.model_copy(update={"num_requests": 8, "answer_tokens": (2, 4)}))
        yield run


@contextlib.contextmanager
def engine_alone(folder: Path, settings: OnlineSettings) -> Iterator[Ask]:
    """An engine in this process, asked as the endpoints ask it."""
    from glm_dist.inference import Blank, Request, SamplingSettings
    from glm_dist.serve.opening import open_engine
    from glm_dist.serve.settings import HostedModel

    engine = open_engine(HostedModel(model=str(folder), num_threads=settings.num_threads))
    special = engine.engine.tokenizer.special

    async def ask(asked: Asked) -> None:
        start, tokens = time.perf_counter(), [special.enc, *asked.prompt, special.gmask]
        sampling = SamplingSettings(max_tokens=asked.num_tokens, ignore_eos=True)
        request = Request(f"{id(asked)}", tokens, [Blank(len(tokens) - 1, sampling)])
        asked.times.clear()
        stream = await engine.submit(request)
        async for _ in stream.outputs():
            asked.times.append(time.perf_counter() - start)

    try:
        yield ask
    finally:
        engine.close()


@contextlib.contextmanager
def served(path: str, folder: Path, settings: OnlineSettings) -> Iterator[Ask]:
    """The model behind Ray Serve, asked over HTTP by plain sockets, which cost a client little."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    asked = {"model": folder, "port": port, "num_threads": settings.num_threads, **SERVED[path]}
    with subprocess.Popen(
        [sys.executable, "jobs/serve.py", *(f"{name}={value}" for name, value in asked.items())],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            if not any(line.startswith("next") for line in server.stdout or []):
                raise RuntimeError(f"the server did not start ({path})")
            yield lambda asked: ask_over_http(port, asked)
        finally:
            server.terminate()
            server.communicate()


async def ask_over_http(port: int, asked: Asked) -> None:
    """A streamed completion; the time of each event with text or tokens."""
    body = json.dumps(
        {
            "prompt": asked.prompt,
            "max_tokens": asked.num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    start = time.perf_counter()
    asked.times.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LONGEST_LINE)
    try:
        writer.write(head.encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"the server answered {status.decode().strip()}")
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                asked.times.append(time.perf_counter() - start)
    finally:
        writer.close()
