"""Asks the engine for what a reply is made of: whole answers, or the events of a stream.

It stands apart from the endpoints, which know what is asked and how it is told.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeAlias

from glm_dist.errors import RequestError
from glm_dist.inference import AnyRequest, Delta, Failure, Output, Scores
from glm_dist.inference.requests import PROMPT_REQUESTS
from glm_dist.serve.engine_thread import AnyEngine, Stream
from glm_dist.serve.errors import ApiError, from_request_error
from glm_dist.serve.keys import Caller
from glm_dist.serve.protocol import StreamOptions
from glm_dist.serve.quotas import FairOrder
from glm_dist.serve.replies import DONE, Answer, Frame, event, usage_of

Reply: TypeAlias = dict[str, Any] | AsyncIterator[str]
"""A whole body, or server-sent events."""
Arrival: TypeAlias = tuple[int, Output]
"""Which of the requests it belongs to, and what came."""
Answers: TypeAlias = dict[tuple[int, int, int], Answer]
"""By request, sample and blank."""


class Asker:
    """Asks one engine for many callers."""

    def __init__(self, engine: AnyEngine, adapter: str | None = None) -> None:
        """Args: adapter: the engine's adapter that answers; null for the model alone."""
        self._engine, self._adapter, self._order = engine, adapter, FairOrder()

    def of_adapter(self, name: str) -> "Asker":
        """Asks an adapter of the same engine; a caller's turns count for both."""
        other = Asker(self._engine, name)
        other._order = self._order
        return other

    @asynccontextmanager
    async def asking(
        self, requests: Sequence[AnyRequest], caller: Caller
    ) -> AsyncIterator[list[Stream]]:
        """Streams of the requests, dropped again however this ends.

        Raises:
            ApiError: when one is refused.
        """
        streams: list[Stream] = []
        with ExitStack() as stack:
            try:
                for request in requests:
                    caller.budget.spend_prompt(len(request.tokens))
                    turn = stack.enter_context(self._order.turn(caller.id)) if caller.id else 0
                    streams.append(await self._submit(self._of(request, caller, turn)))
                yield streams
            finally:
                for stream in streams:
                    self._engine.cancel(stream)
                    if stream.usage is not None:
                        caller.budget.spend_answer(stream.usage.completion_tokens)

    async def answers(
        self, requests: Sequence[AnyRequest], caller: Caller
    ) -> tuple[Answers, dict[str, Any]]:
        """Whole answers, and what they took."""
        answers: Answers = {}
        async with self.asking(requests, caller) as streams:
            async for place, delta in merged(streams):
                assert isinstance(delta, Delta)
                answers.setdefault((place, delta.sample, delta.blank), Answer()).add(delta)
            return answers, usage_of([stream.usage for stream in streams])

    async def scores(
        self, requests: Sequence[AnyRequest], caller: Caller
    ) -> tuple[list[Scores], dict[str, Any]]:
        """Scores in the order of the requests, and what they took."""
        found: dict[int, Scores] = {}
        async with self.asking(requests, caller) as streams:
            async for place, scores in merged(streams):
                assert isinstance(scores, Scores)
                found[place] = scores
            return [found[place] for place in range(len(requests))], usage_of(
                [stream.usage for stream in streams]
            )

    async def outputs(
        self, requests: Sequence[AnyRequest], caller: Caller
    ) -> tuple[list[list[Output]], dict[str, Any]]:
        """All outputs of each request, and what they took."""
        found: list[list[Output]] = [[] for _ in requests]
        async with self.asking(requests, caller) as streams:
            async for place, output in merged(streams):
                found[place].append(output)
            return found, usage_of([stream.usage for stream in streams])

    async def events(
        self,
        requests: Sequence[AnyRequest],
        caller: Caller,
        tell: Callable[[int, Delta], Iterable[dict[str, Any]]],
        frame: Frame,
        *,
        options: StreamOptions | None = None,
        first: Iterable[dict[str, Any]] = (),
    ) -> AsyncIterator[str]:
        """Events of a reply, begun: what is refused is refused before there is one.

        Args:
            requests: what is asked.
            caller: who asks.
            tell: the choices that a delta of a request gives.
            frame: what all events share.
            options: what the client wants to hear beside the text.
            first: choices that stand before the first delta.
        """
        begun = self._events(requests, caller, _told(tell, first), frame, options)
        return chained(await anext(begun), begun)

    async def _events(
        self,
        requests: Sequence[AnyRequest],
        caller: Caller,
        told: Callable[[Sequence[Stream]], AsyncIterator[dict[str, Any]]],
        frame: Frame,
        options: StreamOptions | None,
    ) -> AsyncIterator[str]:
        wanted = options or StreamOptions()
        async with self.asking(requests, caller) as streams:
            try:
                async for choice in told(streams):
                    part = frame.of([choice])
                    if wanted.include_usage:
                        running = usage_of([stream.usage for stream in streams])
                        part["usage"] = running if wanted.continuous_usage_stats else None
                    yield event(part)
                if wanted.include_usage:
                    usage = usage_of([stream.usage for stream in streams])
                    yield event({**frame.of([]), "usage": usage})
            except ApiError as error:
                yield event(error.body)
        yield DONE

    def _of(self, request: AnyRequest, caller: Caller, turn: int) -> AnyRequest:
        """The request in its caller's turn; what is kept of its prompt is its caller's alone."""
        if isinstance(request, PROMPT_REQUESTS):
            return replace(request, priority=turn, adapter=self._adapter)
        return replace(request, priority=turn, cache_salt=caller.id, adapter=self._adapter)

    async def _submit(self, request: AnyRequest) -> Stream:
        try:
            return await self._engine.submit(request)
        except RequestError as error:
            raise from_request_error(error) from None
        except RuntimeError:
            raise ApiError(503, "the engine is down; try again") from None


async def merged(streams: Sequence[Stream]) -> AsyncIterator[Arrival]:
    """Outputs of all streams as they come; the first failure ends it.

    Raises:
        ApiError: when a request broke while it ran.
    """
    arrivals: asyncio.Queue[Arrival | Exception | None] = asyncio.Queue()

    async def pump(place: int, stream: Stream) -> None:
        try:
            async for output in stream.outputs():
                arrivals.put_nowait((place, output))
        except Exception as error:
            arrivals.put_nowait(error)
        arrivals.put_nowait(None)

    tasks = [asyncio.create_task(pump(place, stream)) for place, stream in enumerate(streams)]
    try:
        remaining = len(tasks)
        while remaining:
            arrival = await arrivals.get()
            if arrival is None:
                remaining -= 1
            elif isinstance(arrival, Exception):
                raise ApiError(500, "the engine failed") from arrival
            elif isinstance(arrival[1], Failure):
                failure = arrival[1]
                status = 400 if failure.code else 500
                raise ApiError(status, failure.message, code=failure.code)
            else:
                yield arrival
    finally:
        for task in tasks:
            task.cancel()


def _told(
    tell: Callable[[int, Delta], Iterable[dict[str, Any]]], first: Iterable[dict[str, Any]]
) -> Callable[[Sequence[Stream]], AsyncIterator[dict[str, Any]]]:
    async def told(streams: Sequence[Stream]) -> AsyncIterator[dict[str, Any]]:
        for choice in first:
            yield choice
        async for place, delta in merged(streams):
            assert isinstance(delta, Delta)
            if delta.text or delta.tokens or delta.finish_reason:
                for choice in tell(place, delta):
                    yield choice

    return told


async def chained(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    """The first event, and those that follow."""
    yield first
    async for one in rest:
        yield one
