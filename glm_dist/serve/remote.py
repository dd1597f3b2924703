"""Engines in other processes, asked as if they were one engine here.

It stands apart from Ray, which only says where they are. A request goes to one replica over that
replica's stream; when the replica dies, falls silent or hangs up, the request goes to another from
its start, and what its client already has is left out. So nothing is lost as long as one replica
comes back, and nobody can tell from the bytes.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from dataclasses import fields, replace

from glm_dist.inference import AnyRequest, EngineStats, ScoreRequest, Usage
from glm_dist.inference.requests import PROMPT_REQUESTS
from glm_dist.serve.choice import choose, prompt_key
from glm_dist.serve.engine_thread import Arrived, Stream
from glm_dist.serve.errors import OVERLOADED, NoRoomError
from glm_dist.serve.link import Address
from glm_dist.serve.progress import Progress
from glm_dist.serve.wire import LONGEST_LINE, NEWS, ORDERS, News, Order, Refusal, Vitals

logger = logging.getLogger(__name__)
CONNECT_SECONDS = 5.0
SILENT_SECONDS = 5.0
"""Ten heartbeats: of a replica that says nothing for so long nothing more is expected."""
HOPELESS_SECONDS = 12.0
"""Heartbeats come from a thread that never computes, so this one is stopped or cut off."""
NEW_WAIT_SECONDS = 5.0
"""A request that no replica can take waits so long before it is refused."""
REPLAY_WAIT_SECONDS = 120.0
"""A request that some replica had waits so long for another to go on with it."""
LOOK_SECONDS = 0.1
"""Between two looks for a replica, and between two offers to busy ones."""
MAX_DEATHS = 3
"""Replicas that may be lost under one request: it may be what ends them."""


class RemoteStream(Stream):
    """The outputs of one request, whichever replicas they come from."""

    def __init__(self, request: AnyRequest, key: bytes) -> None:
        super().__init__(request)
        self.key = key
        self.link: Link | None = None
        self.refused_by: set[str] = set()
        self.is_over = False
        self.num_deaths = 0
        self._progress, self._num_attempts = Progress(), 0
        self._weights = ""

    @property
    def weights(self) -> str | None:
        """Those that can go on with it; None where any can."""
        return self._weights if self._progress.has_begun else None

    @property
    def is_accepted(self) -> bool:
        """Whether some replica has taken it in."""
        return self._accepted.done()

    def begin(self, link: "Link") -> AnyRequest:
        """What to ask of this replica; the id says which attempt it is."""
        if self._num_attempts:
            self._progress.replay()
        self._num_attempts += 1
        self.link, self._weights = link, link.address.weights
        return replace(self.request, id=f"{self.request.id}.{self._num_attempts}")

    def give(self, outputs: Arrived, usage: Usage | None) -> None:
        """Hand over what is new."""
        found: Arrived = []
        for output in outputs:
            if output is None or isinstance(output, Exception):
                found.append(output)
            elif (new := self._progress.pass_on(output)) is not None:
                found.append(new)
        known = usage or self.usage
        if known is not None:
            known = replace(known, completion_tokens=self._progress.num_tokens)
        super().give(found, known)

    def end(self, error: Exception | None = None) -> None:
        """Nothing more comes, for a reason or because all is there."""
        self.is_over, self.link = True, None
        if error is not None:
            self.answer(error)
        self.give([None] if error is None else [error, None], None)


def num_answers(request: AnyRequest) -> int:
    """Places in an engine that a request takes."""
    if isinstance(request, PROMPT_REQUESTS):
        return 1
    if isinstance(request, ScoreRequest):
        return len(request.options)
    # The beams of a search take one.
    num_samples = 1 if request.beams else request.num_samples
    return num_samples * (1 if request.is_joint else len(request.blanks))


class Link:
    """The stream of one engine replica."""

    def __init__(self, address: Address, engines: "RemoteEngines") -> None:
        self.address = address
        self.vitals: Vitals | None = None
        self.streams: dict[str, RemoteStream] = {}
        self.heard = time.monotonic()
        self._engines = engines
        self._writer: asyncio.StreamWriter | None = None

    @property
    def num_answers(self) -> int:
        """Answers that it was asked for and has not ended."""
        return sum(num_answers(stream.request) for stream in self.streams.values())

    @property
    def silent_seconds(self) -> float:
        """Since it last said anything."""
        return time.monotonic() - self.heard

    @property
    def is_leaving(self) -> bool:
        """Whether it ends when what it has begun is done."""
        return self.vitals is not None and self.vitals.is_leaving

    @property
    def is_ready(self) -> bool:
        """Whether something new can be asked of it."""
        return (
            self.vitals is not None
            and self.vitals.trouble is None
            and self.silent_seconds < SILENT_SECONDS
        )

    async def run(self) -> None:
        """Connect, and pass on what comes until it ends."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, self._writer = await asyncio.open_connection(
                    self.address.host, self.address.port, limit=LONGEST_LINE
                )
            self._writer.write(f"{self.address.secret}\n".encode())
            while line := await reader.readline():
                self.heard = time.monotonic()
                self._take(NEWS.read(line))
        except (OSError, ValueError, TimeoutError) as error:
            logger.warning("replica %s: %s", self.address.replica, error or type(error).__name__)
        finally:
            self.hang_up()

    def hang_up(self) -> None:
        """Nothing more is expected of it."""
        if self._writer is not None:
            with contextlib.suppress(RuntimeError):
                self._writer.close()
        self._engines.lose(self)

    def ask(self, stream: RemoteStream) -> None:
        """Give it a request."""
        request = stream.begin(self)
        self.streams[request.id] = stream
        self._write(Order.of(request))

    def cancel(self, stream: RemoteStream) -> None:
        """Take a request back."""
        for name in [name for name, each in self.streams.items() if each is stream]:
            del self.streams[name]
            self._write(Order(cancel=name))

    def _write(self, order: Order) -> None:
        assert self._writer is not None
        if not self._writer.is_closing():
            self._writer.write(ORDERS.write(order))

    def _take(self, news: News) -> None:
        if news.vitals is not None:
            self.vitals = news.vitals
            self._engines.look_after(self)
        for name in news.accepted:
            if (stream := self.streams.get(name)) is not None:
                stream.answer(None)
        for refusal in news.refused:
            self._engines.refused(self.streams.pop(refusal.id, None), refusal)
        found: dict[str, Arrived] = {}
        for output in news.outputs:
            found.setdefault(output.request_id, []).append(output)
        for name, arrived in found.items():
            if (stream := self.streams.get(name)) is not None:
                stream.give(arrived, news.usages.get(name))
        for name in news.ended:
            if (stream := self.streams.pop(name, None)) is not None:
                stream.end()


class RemoteEngines:
    """All engine replicas of one model, under the interface of one engine."""

    def __init__(self, kind: str, *, is_causal: bool, room: int | None = None) -> None:
        """Engines that are not connected yet.

        Args:
            kind: what replicas must be to answer these requests.
            is_causal: whether prompts share their beginnings.
            room: answers that each computes or lets wait; what comes beyond is refused here, so
                that they spend no time on refusals.
        """
        self._kind, self._is_causal, self._room = kind, is_causal, room
        self._links: dict[str, Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def links(self) -> list[Link]:
        """Those that are connected."""
        return list(self._links.values())

    @property
    def stats(self) -> EngineStats:
        """Of all replicas together."""
        known = [link.vitals.stats for link in self.links if link.vitals is not None]
        names = [each.name for each in fields(EngineStats)]
        return EngineStats(*(sum(getattr(stats, name) for stats in known) for name in names))

    @property
    def failure(self) -> Exception | None:
        """Why nothing can be answered now; None while one replica answers."""
        if self._ready():
            return None
        troubles = {link.vitals.trouble for link in self.links if link.vitals is not None}
        said = "; ".join(sorted(trouble for trouble in troubles if trouble))
        return RuntimeError(f"no replica is ready{': ' * bool(said)}{said}")

    def connect(self, addresses: list[Address]) -> None:
        """Open streams to replicas that there is none to yet."""
        for address in addresses:
            if address.kind == self._kind and address.replica not in self._links:
                link = self._links[address.replica] = Link(address, self)
                self._start(link.run())

    async def submit(self, request: AnyRequest) -> RemoteStream:
        """Ask; the stream that is given has been accepted.

        Raises:
            RequestError: when the request is refused.
            RuntimeError: when no replica is ready for a while.
        """
        self._check_room()
        stream = RemoteStream(request, prompt_key(request, is_causal=self._is_causal))
        try:
            await self._place(stream, NEW_WAIT_SECONDS)
            await stream.accepted()
        except asyncio.CancelledError:
            self.cancel(stream)
            raise
        return stream

    def cancel(self, stream: RemoteStream) -> None:
        """Free what a request holds; nothing where it has ended."""
        if stream.link is not None:
            stream.link.cancel(stream)
        stream.is_over, stream.link = True, None

    def lose(self, link: Link) -> None:
        """A replica is gone; others go on with what it had in work."""
        if self._links.get(link.address.replica) is link:
            del self._links[link.address.replica]
        self._move(link)

    def refused(self, stream: RemoteStream | None, refusal: Refusal) -> None:
        """What one replica has no room for may go to another; what is wrong is wrong everywhere."""
        if stream is None or stream.is_over:
            return
        if stream.link is not None:
            stream.refused_by.add(stream.link.address.replica)
        is_final = not refusal.is_ours
        if refusal.code == OVERLOADED and not stream.is_accepted:
            is_final = not self._candidates(stream)
        if is_final:
            stream.end(refusal.error)
        else:
            self._place_again(stream)

    def look_after(self, link: Link) -> None:
        """Hang up where a replica leaves, others stay, and nothing is in work there."""
        others = [each for each in self.links if each.is_ready and not each.is_leaving]
        if link.is_leaving and not link.streams and others:
            link.hang_up()

    def patrol(self) -> list[str]:
        """Take requests away from replicas that say nothing; those beyond hope, by name."""
        for link in self.links:
            if link.silent_seconds > SILENT_SECONDS and link.streams:
                logger.warning("replica %s is silent", link.address.replica)
                for stream in list(link.streams.values()):
                    link.cancel(stream)
                    self._place_again(stream)
        return [
            link.address.replica for link in self.links if link.silent_seconds > HOPELESS_SECONDS
        ]

    def close(self) -> None:
        """Hang up everywhere."""
        for link in self.links:
            link.hang_up()
        for task in self._tasks:
            task.cancel()

    def _check_room(self) -> None:
        """Refuse where replicas have as much from here as they can take.

        Raises:
            RequestError: when there is no room.
        """
        ready = self._ready()
        if self._room is None or not ready:
            return
        room = self._room * len(ready)
        if sum(link.num_answers for link in ready) >= room:
            raise NoRoomError(
                f"{room} answers are in work or wait already; try again later", code=OVERLOADED
            )

    def _move(self, link: Link) -> None:
        streams, link.streams = list(link.streams.values()), {}
        for stream in streams:
            stream.num_deaths += 1
            if stream.num_deaths > MAX_DEATHS:
                stream.end(RuntimeError(f"{MAX_DEATHS + 1} replicas were lost under this request"))
            elif stream.weights is not None and not link.address.repeats:
                stream.end(RuntimeError("the engine was lost, and none can go on with its answer"))
            else:
                self._place_again(stream)

    def _place_again(self, stream: RemoteStream) -> None:
        stream.link = None

        async def place() -> None:
            try:
                await self._place(stream, REPLAY_WAIT_SECONDS)
            except RuntimeError as error:
                stream.end(error)

        self._start(place())

    async def _place(self, stream: RemoteStream, wait_seconds: float) -> None:
        """Give a request to a replica, as soon as there is one that can take it.

        Raises:
            RuntimeError: when there is none for that long.
        """
        deadline = time.monotonic() + wait_seconds
        while not stream.is_over:
            links = self._candidates(stream)
            if links:
                loads = {link.address.replica: len(link.streams) for link in links}
                self._links[choose(loads, stream.key)].ask(stream)
                return
            if time.monotonic() > deadline:
                raise self.failure or RuntimeError("no replica can go on with this request")
            stream.refused_by.clear()
            await asyncio.sleep(LOOK_SECONDS)

    def _candidates(self, stream: RemoteStream) -> list[Link]:
        """Who can take a request; those that leave only where there is nobody else."""
        ready = [
            link
            for link in self._ready()
            if stream.weights in (None, link.address.weights)
            and stream.request.adapter in (None, *link.address.adapters)
            and link.address.replica not in stream.refused_by
        ]
        return [link for link in ready if not link.is_leaving] or ready

    def _ready(self) -> list[Link]:
        return [link for link in self.links if link.is_ready]

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
