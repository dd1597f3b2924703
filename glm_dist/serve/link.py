"""The engine replica's end of the message stream: one connection a front, all its requests in it.

It stands apart from Ray Serve, whose calls take two hops of several milliseconds each and count a
stream that never ends as a request in work. What a request gives for the first time goes out at
once, what follows at least `COLLECT_SECONDS` after the last; a front that does not read is left.
"""

import asyncio
import contextlib
import hmac
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from glm_dist.errors import RequestError
from glm_dist.inference import AnyRequest, Usage
from glm_dist.serve.engine_thread import Arrived, EngineThread
from glm_dist.serve.wire import LONGEST_LINE, NEWS, ORDERS, News, Refusal, Vitals

logger = logging.getLogger(__name__)
COLLECT_SECONDS = 0.005
LEAVE_LOOK_SECONDS = 0.02
HEARTBEAT_SECONDS = 0.5
HELLO_SECONDS = 5.0
UNREAD_BYTES = 64 << 20
"""So much may wait for a front that does not read, before it is taken for dead."""


@dataclass(frozen=True)
class Address:
    """Where an engine replica takes orders, and who may give them."""

    replica: str
    host: str
    port: int
    secret: str
    """Known only to whom Ray's own, authenticated calls told it."""
    kind: str
    """What fronts and engines must have in common: tokenizer and shape of the model."""
    weights: str
    """What replicas must have in common for the same bytes."""
    adapters: tuple[str, ...] = ()
    """Names of those that it has."""
    repeats: bool = True
    """Whether an answer comes out the same once more, so that another can go on with it."""


class EngineServer:
    """Takes orders of fronts for one engine."""

    def __init__(self, engine: EngineThread, trouble: Callable[[], str | None]) -> None:
        self._engine, self._trouble = engine, trouble
        self._fronts: set[_Front] = set()
        self._is_leaving = False
        self._server: asyncio.Server | None = None
        self._beating: asyncio.Task[None] | None = None
        self._secret = secrets.token_hex(16)

    async def open(self, host: str) -> tuple[int, str]:
        """Listen at a free port; the port and the secret that lets in."""
        self._server = await asyncio.start_server(self._serve, host, 0, limit=LONGEST_LINE)
        self._beating = asyncio.create_task(self._beat())
        return self._server.sockets[0].getsockname()[1], self._secret

    async def leave(self) -> None:
        """Say that it ends, and return when no front needs it any more."""
        self._is_leaving = True
        self._tell_all()
        while self._fronts:
            await asyncio.sleep(LEAVE_LOOK_SECONDS)

    async def close(self) -> None:
        """Hang up at once; fronts ask others for what was going on."""
        if self._beating is not None:
            self._beating.cancel()
        if self._server is not None:
            self._server.close()
        for front in list(self._fronts):
            front.hang_up()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        front = _Front(self._engine, writer)
        try:
            hello = await asyncio.wait_for(reader.readline(), HELLO_SECONDS)
            if not hmac.compare_digest(hello.strip(), self._secret.encode()):
                return
            self._fronts.add(front)
            front.news.vitals = self._vitals
            front.send()
            while line := await reader.readline():
                front.take(line)
        except (ConnectionError, TimeoutError, ValueError) as error:
            logger.warning("a front is gone: %s", error or type(error).__name__)
        finally:
            self._fronts.discard(front)
            front.hang_up()

    @property
    def _vitals(self) -> Vitals:
        return Vitals(self._engine.stats, self._trouble(), self._is_leaving)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._tell_all()

    def _tell_all(self) -> None:
        for front in self._fronts:
            front.news.vitals = self._vitals
            front.send()


class _Front:
    """One connected front: what it waits for, and what it has not been sent yet."""

    def __init__(self, engine: EngineThread, writer: asyncio.StreamWriter) -> None:
        self.news = News()
        self._engine, self._writer = engine, writer
        self._listeners: dict[str, _Listener] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._sent = 0.0

    def take(self, line: bytes) -> None:
        """Do what an order says."""
        order = ORDERS.read(line)
        if order.asked is not None:
            listener = _Listener(self, order.asked, self._loop)
            self._listeners[listener.request.id] = listener
            self._engine.ask(listener)
        elif (known := self._listeners.pop(order.cancel or "", None)) is not None:
            self._engine.cancel(known)

    def hang_up(self) -> None:
        """Nobody waits any more."""
        for listener in self._listeners.values():
            self._engine.cancel(listener)
        self._listeners.clear()
        with contextlib.suppress(RuntimeError):  # of a loop that has ended
            self._writer.close()

    def end(self, request_id: str) -> None:
        """Nothing more comes for a request."""
        self.news.ended.append(request_id)
        self._listeners.pop(request_id, None)

    def send(self) -> None:
        """Everything collected, now."""
        if self._timer is not None:
            self._timer.cancel()
        news, self.news, self._timer = self.news, News(), None
        self._sent = self._loop.time()
        if self._writer.is_closing():
            return
        self._writer.write(NEWS.write(news))
        if self._writer.transport.get_write_buffer_size() > UNREAD_BYTES:
            logger.warning("a front does not read; it is left")
            self._writer.transport.abort()

    def send_soon(self) -> None:
        """Everything that a step gives, and no sooner than the time of collecting is over."""
        if self._timer is None:
            self._timer = self._loop.call_at(self._sent + COLLECT_SECONDS, self.send)


class _Listener:
    """Passes on what comes for one request."""

    def __init__(self, front: _Front, request: AnyRequest, loop: asyncio.AbstractEventLoop) -> None:
        self.request, self.loop = request, loop
        self._front = front
        self._has_begun = False

    def answer(self, error: Exception | None) -> None:
        """Say whether the request was taken in."""
        if error is None:
            self._front.news.accepted.append(self.request.id)
        else:
            given = error if isinstance(error, RequestError) else RequestError(str(error))
            is_ours = given is not error or given.code == "overloaded"
            refusal = Refusal(self.request.id, str(given), given.param, given.code, is_ours)
            self._front.news.refused.append(refusal)
            self._front.end(self.request.id)
        self._front.send()

    def give(self, outputs: Arrived, usage: Usage | None) -> None:
        """Put what came with the rest; the first goes out at once."""
        news = self._front.news
        for output in outputs:
            if output is None:
                self._front.end(self.request.id)
            elif isinstance(output, Exception):
                self._front.hang_up()  # the engine is down: another one has to go on
                return
            else:
                news.add(output)
        if usage is not None:
            news.usages[self.request.id] = usage
        if self._has_begun:
            self._front.send_soon()
        else:
            self._has_begun = True
            self._front.send()
