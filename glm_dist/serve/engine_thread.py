"""An engine in a thread of its own, asked by many coroutines.

It stands apart because the engine is not thread-safe and blocks: requests go to it through one
queue, and all that a step gives comes back to the event loop in one call.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

from glm_dist.errors import RequestError
from glm_dist.inference import AnyRequest, Engine, EngineStats, Failure, Output, Request, Usage
from glm_dist.inference.constraints import Matchers
from glm_dist.inference.vllm_engine import VllmEngine

logger = logging.getLogger(__name__)
Arrived: TypeAlias = list[Output | Exception | None]
"""Outputs of one request; None is the end."""
NUM_COMPILERS = 2
"""Threads that compile what answers are held to, some 50 ms each at the most."""


class Listener(Protocol):
    """Who asked, and is told in the event loop that it waits in."""

    request: AnyRequest
    loop: asyncio.AbstractEventLoop

    def answer(self, error: Exception | None) -> None:
        """Say whether the request was taken in."""

    def give(self, outputs: Arrived, usage: Usage | None) -> None:
        """Hand over what came."""


class Stream:
    """The outputs of one request, as they come."""

    def __init__(self, request: AnyRequest) -> None:
        self.request = request
        self.usage: Usage | None = None
        self.loop = asyncio.get_running_loop()
        self._outputs: asyncio.Queue[Output | Exception | None] = asyncio.Queue()
        self._accepted: asyncio.Future[None] = self.loop.create_future()

    async def accepted(self) -> None:
        """Wait until the engine has taken the request in.

        Raises:
            RequestError: when it refuses it.
            RuntimeError: when it has broken down.
        """
        await self._accepted

    async def outputs(self) -> AsyncIterator[Output]:
        """All outputs; the last one has set `usage`."""
        while (output := await self._outputs.get()) is not None:
            if isinstance(output, Exception):
                raise output
            yield output

    def answer(self, error: Exception | None) -> None:
        """Say whether it was taken in; called in the event loop."""
        if self._accepted.done():
            return
        if error is None:
            self._accepted.set_result(None)
        else:
            self._accepted.set_exception(error)

    def give(self, outputs: Arrived, usage: Usage | None) -> None:
        """Hand over what came; called in the event loop."""
        self.usage = usage or self.usage
        for output in outputs:
            self._outputs.put_nowait(output)


class AnyEngine(Protocol):
    """An engine as the endpoints ask it, wherever it runs."""

    @property
    def stats(self) -> EngineStats:
        """What it holds and has done."""

    @property
    def failure(self) -> Exception | None:
        """Why it cannot answer now; None while it can."""

    async def submit(self, request: AnyRequest) -> Stream:
        """Ask; the stream that is given has been accepted."""

    def cancel(self, stream: Any) -> None:
        """Free what a request holds; nothing where it has ended."""


@dataclass(frozen=True)
class Pulse:
    """Signs of life of an engine, by the monotonic clock."""

    working_since: float | None
    """When the step or order that is being worked on began; None while nothing is to be done."""
    last_output: float
    """When a step last gave anything but failures."""
    num_failures: int
    """Requests that broke while they ran."""


@dataclass(frozen=True)
class _Add:
    """The engine is to take a request in."""

    listener: Listener
    matchers: Matchers


@dataclass(frozen=True)
class _Cancel:
    """The engine is to drop a request."""

    listener: Listener


class _Compilers:
    """Compile what answers are held to, so that no step of the engine waits for it."""

    def __init__(
        self, engine: Engine | VllmEngine, done: Callable[[Listener, Matchers], None]
    ) -> None:
        """Args: done: is given whoever still waits when its constraints are compiled."""
        self._engine, self._done = engine, done
        self._threads = ThreadPoolExecutor(NUM_COMPILERS, thread_name_prefix="constraints")
        self._waiting: set[Listener] = set()
        self._lock = threading.Lock()

    def ask(self, listener: Listener) -> None:
        """Compile for one more; it is told where that cannot be."""
        if len(self._waiting) >= self._engine.limits.max_waiting:
            error = RequestError(
                "too many constraints are to be compiled; try again later", code="overloaded"
            )
            _call(listener.loop, listener.answer, error)
            return
        with self._lock:
            self._waiting.add(listener)
        self._threads.submit(self._compile, listener)

    def forget(self, listener: Listener) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._waiting.discard(listener)

    def close(self) -> None:
        """End the threads when what they do is done."""
        self._threads.shutdown(cancel_futures=True)

    def _compile(self, listener: Listener) -> None:
        matchers, failure = None, None
        try:
            matchers = self._engine.prepare(listener.request)
        except Exception as error:
            failure = error
        with self._lock:
            if listener not in self._waiting:
                return
            self._waiting.discard(listener)
            # Under the lock, so that whoever forgets it now takes back what is done here.
            if matchers is None:
                _call(listener.loop, listener.answer, failure)
            else:
                self._done(listener, matchers)


class EngineThread:
    """Runs an engine until it is closed."""

    def __init__(self, engine: Engine | VllmEngine) -> None:
        self.engine = engine
        self.failure: Exception | None = None
        self._inbox: queue.SimpleQueue[_Add | _Cancel | None] = queue.SimpleQueue()
        self._compilers = _Compilers(engine, self._add_soon)
        self._listeners: dict[str, Listener] = {}
        self._pulse = Pulse(None, time.monotonic(), 0)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> EngineStats:
        """What the engine holds and has done."""
        return self.engine.stats

    @property
    def pulse(self) -> Pulse:
        """Its signs of life."""
        return self._pulse

    async def submit(self, request: AnyRequest) -> Stream:
        """Ask; the stream that is given has been accepted.

        Raises:
            RequestError: when the engine refuses the request.
            RuntimeError: when the engine has broken down.
        """
        stream = Stream(request)
        self.ask(stream)
        try:
            await stream.accepted()
        except asyncio.CancelledError:
            self.cancel(stream)
            raise
        return stream

    def ask(self, listener: Listener) -> None:
        """Ask without waiting; the listener is told what becomes of it."""
        if isinstance(listener.request, Request) and listener.request.is_constrained:
            self._compilers.ask(listener)
        else:
            self._add_soon(listener, {})

    def cancel(self, listener: Listener) -> None:
        """Free what a request holds; nothing where it has ended."""
        self._compilers.forget(listener)
        self._inbox.put(_Cancel(listener))

    def close(self) -> None:
        """End the thread when its present step is done."""
        self._compilers.close()
        self._inbox.put(None)
        self._thread.join()

    def _add_soon(self, listener: Listener, matchers: Matchers) -> None:
        self._inbox.put(_Add(listener, matchers))
        if self.failure is not None:
            self._refuse_all(self.failure)

    def _run(self) -> None:
        try:
            while self._take_orders():
                self._step()
        except Exception as error:
            logger.exception("the engine broke down")
            self.failure = error
            self._refuse_all(error)

    def _refuse_all(self, error: Exception) -> None:
        """Tell all who wait that nothing comes any more; also called beside the dead thread."""
        with contextlib.suppress(queue.Empty):
            while True:
                order = self._inbox.get_nowait()
                if isinstance(order, _Add):
                    _call(order.listener.loop, order.listener.answer, _broken(error))
        for name in list(self._listeners):
            listener = self._listeners.pop(name)
            _call(listener.loop, listener.give, [_broken(error), None], None)

    def _take_orders(self) -> bool:
        """Do what was asked since the last step, and wait where nothing is to be done."""
        while True:
            is_idle = not self.engine.has_work
            if is_idle:
                self._pulse = replace(self._pulse, working_since=None)
            try:
                order = self._inbox.get(block=is_idle)
            except queue.Empty:
                return True
            finally:
                self._pulse = replace(self._pulse, working_since=time.monotonic())
            if order is None:
                return False
            if isinstance(order, _Add):
                self._add(order.listener, order.matchers)
            elif self._listeners.pop(order.listener.request.id, None) is not None:
                self.engine.cancel(order.listener.request.id)

    def _add(self, listener: Listener, matchers: Matchers) -> None:
        try:
            self.engine.add(listener.request, matchers)
        except RequestError as error:
            _call(listener.loop, listener.answer, error)
            return
        self._listeners[listener.request.id] = listener
        _call(listener.loop, listener.answer, None)

    def _step(self) -> None:
        outputs = self.engine.step()
        broken = sum(isinstance(output, Failure) for output in outputs)
        now, pulse = time.monotonic(), self._pulse
        last = now if len(outputs) > broken else pulse.last_output
        self._pulse = Pulse(now, last, pulse.num_failures + broken)
        found: dict[str, Arrived] = {}
        for output in outputs:
            found.setdefault(output.request_id, []).append(output)
        self._hand_over(found)

    def _hand_over(self, found: dict[str, Arrived]) -> None:
        gifts: dict[asyncio.AbstractEventLoop, list[Gift]] = defaultdict(list)
        for request_id, arrived in found.items():
            listener = self._listeners.get(request_id)
            if listener is None:
                continue
            usage = self.engine.usage(request_id)
            if not self.engine.is_in_work(request_id):
                arrived.append(None)
                del self._listeners[request_id]
            gifts[listener.loop].append((listener, arrived, usage))
        for loop, some in gifts.items():
            _call(loop, _give_all, some)


Gift: TypeAlias = tuple[Listener, Arrived, Usage | None]


def _give_all(gifts: list[Gift]) -> None:
    for listener, arrived, usage in gifts:
        listener.give(arrived, usage)


def _broken(error: Exception) -> RuntimeError:
    return RuntimeError(f"the engine broke down: {error}")


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *arguments: Any) -> None:
    """Call in a loop that may have ended."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        logger.debug("a listener has gone")
