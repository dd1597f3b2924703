"""An engine in a thread of its own, asked by many coroutines.

It stands apart because the engine is not thread-safe and blocks: requests go to it through one
queue, and what a step gives comes back to the event loop in one call.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator
from typing import Any

from glm_dist.errors import RequestError
from glm_dist.inference import AnyRequest, Engine, EngineStats, Output, Usage

logger = logging.getLogger(__name__)


class Stream:
    """The outputs of one request, as they come."""

    def __init__(self, request: AnyRequest) -> None:
        self.request = request
        self.usage: Usage | None = None
        self._loop = asyncio.get_running_loop()
        self._outputs: asyncio.Queue[Output | Exception | None] = asyncio.Queue()
        self._accepted: asyncio.Future[None] = self._loop.create_future()

    async def accepted(self) -> None:
        """Wait until the engine has taken the request in.

        Raises:
            RequestError: when it refuses it.
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

    def give(self, outputs: list[Output | Exception | None], usage: Usage | None) -> None:
        """Hand over what came; called in the event loop."""
        self.usage = usage or self.usage
        for output in outputs:
            self._outputs.put_nowait(output)

    def call(self, function: Any, *arguments: Any) -> None:
        """Call in the loop that waits for it, which may have ended."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)


class EngineThread:
    """Runs an engine until it is closed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failure: Exception | None = None
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._streams: dict[str, Stream] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> EngineStats:
        """What the engine holds and has done."""
        return self.engine.stats

    async def submit(self, request: AnyRequest) -> Stream:
        """Ask; the stream that is given has been accepted.

        Raises:
            RequestError: when the engine refuses the request.
            RuntimeError: when the engine has broken down.
        """
        if self.failure is not None:
            raise RuntimeError(f"the engine is down: {self.failure}")
        stream = Stream(request)
        self._inbox.put(("add", stream))
        try:
            await stream.accepted()
        except asyncio.CancelledError:
            self.cancel(stream)
            raise
        return stream

    def cancel(self, stream: Stream) -> None:
        """Free what a request holds; nothing where it has ended."""
        self._inbox.put(("cancel", stream))

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
            for stream in self._streams.values():
                stream.call(stream.give, [RuntimeError("the engine broke down"), None], None)

    def _take_orders(self) -> bool:
        """Do what was asked since the last step, and wait where nothing is to be done."""
        while True:
            try:
                order, stream = self._inbox.get(block=not self.engine.has_work)
            except queue.Empty:
                return True
            if order == "close":
                return False
            if order == "add":
                self._add(stream)
            elif self._streams.pop(stream.request.id, None) is not None:
                self.engine.cancel(stream.request.id)

    def _add(self, stream: Stream) -> None:
        try:
            self.engine.add(stream.request)
        except RequestError as error:
            stream.call(stream.answer, error)
            return
        self._streams[stream.request.id] = stream
        stream.call(stream.answer, None)

    def _step(self) -> None:
        found: dict[str, list[Output | Exception | None]] = {}
        for output in self.engine.step():
            found.setdefault(output.request_id, []).append(output)
        for request_id, outputs in found.items():
            stream = self._streams.get(request_id)
            if stream is None:
                continue
            usage = self.engine.usage(request_id)
            if not self.engine.is_in_work(request_id):
                outputs.append(None)
                del self._streams[request_id]
            stream.call(stream.give, outputs, usage)
