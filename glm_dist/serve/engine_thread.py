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
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

from glm_dist.errors import RequestError
from glm_dist.inference import AnyRequest, Engine, EngineStats, Failure, Output, Request, Usage

logger = logging.getLogger(__name__)
Arrived: TypeAlias = list[Output | Exception | None]
"""Outputs of one request; None is the end."""


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


class EngineThread:
    """Runs an engine until it is closed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failure: Exception | None = None
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
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
        blanks = request.blanks if isinstance(request, Request) else ()
        if any(blank.sampling.constraint for blank in blanks):
            await asyncio.to_thread(self.engine.prepare, request)
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
        self._inbox.put(("add", listener))
        if self.failure is not None:
            self._refuse_all(self.failure)

    def cancel(self, listener: Listener) -> None:
        """Free what a request holds; nothing where it has ended."""
        self._inbox.put(("cancel", listener))

    def close(self) -> None:
        """End the thread when its present step is done."""
        self._inbox.put(("close", None))
        self._thread.join()

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
                order, listener = self._inbox.get_nowait()
                if order == "add":
                    _call(listener.loop, listener.answer, _broken(error))
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
                order, listener = self._inbox.get(block=is_idle)
            except queue.Empty:
                return True
            finally:
                self._pulse = replace(self._pulse, working_since=time.monotonic())
            if order == "close":
                return False
            if order == "add":
                self._add(listener)
            elif self._listeners.pop(listener.request.id, None) is not None:
                self.engine.cancel(listener.request.id)

    def _add(self, listener: Listener) -> None:
        try:
            self.engine.add(listener.request)
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
