"""Whether the model answers, found out by asking it: a health route that never lies."""

import asyncio
import time
from uuid import uuid4

from glm_dist.errors import RequestError
from glm_dist.inference import AnyRequest, Delta, Failure, Labelled
from glm_dist.model import ModelSettings
from glm_dist.serve.engine_thread import AnyEngine
from glm_dist.serve.errors import ApiError
from glm_dist.serve.probe import probe
from glm_dist.tokenizer import Tokenizer

FRESH_SECONDS = 5.0
"""How long a token proves that the engine generates."""
PATIENCE_SECONDS = 5.0
"""The longest a token may take."""
LOOK_SECONDS = 0.25
"""Between two looks at the engine while a token is waited for."""


class Readiness:
    """Knows when a token came last, and asks for one where that is too long ago."""

    def __init__(self, engine: AnyEngine, tokenizer: Tokenizer, settings: ModelSettings) -> None:
        self._engine, self._tokenizer, self._settings = engine, tokenizer, settings
        self._seen = 0
        self._proven_at: float | None = None
        self._probe: asyncio.Task[None] | None = None

    async def check(self) -> None:
        """Return where a token came lately, or comes now.

        Raises:
            ApiError: 503 where none does.
        """
        self._look()
        if self._proven_at is None or time.monotonic() - self._proven_at > FRESH_SECONDS:
            if self._probe is None or self._probe.done():
                self._probe = asyncio.create_task(self._generate())
                self._probe.add_done_callback(_note)  # whoever asked may have had an answer
            while not self._probe.done():
                await asyncio.wait([self._probe], timeout=LOOK_SECONDS)
                self._look()  # an engine may be known to be down before the probe's time is over
            await self._probe

    def _look(self) -> None:
        """Take note of tokens that others asked for."""
        if self._engine.failure is not None:
            raise ApiError(503, "the engine is down")
        count = self._engine.stats.generated_tokens
        if count > self._seen:
            self._proven_at = time.monotonic()
        self._seen = count  # less than before where a replica has gone

    async def _generate(self) -> None:
        request = probe(uuid4().hex, self._tokenizer, self._settings)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._ask(request)
        except TimeoutError:
            self._look()
            if self._proven_at is None or time.monotonic() - self._proven_at > PATIENCE_SECONDS:
                raise ApiError(503, f"no token came for {PATIENCE_SECONDS:g} s") from None
        except RequestError:
            # It refuses because many wait; whether they get on is seen from their tokens.
            self._look()
            if self._proven_at is None:
                raise ApiError(503, "many wait, and no token has come yet") from None
        except RuntimeError:
            raise ApiError(503, "the engine is down") from None

    async def _ask(self, request: AnyRequest) -> None:
        stream = await self._engine.submit(request)
        try:
            async for output in stream.outputs():
                if isinstance(output, Failure):
                    raise ApiError(503, f"no token can be generated: {output.message}")
                if isinstance(output, Labelled) or isinstance(output, Delta) and output.tokens:
                    self._proven_at = time.monotonic()
        finally:
            self._engine.cancel(stream)


def _note(probe: asyncio.Task[None]) -> None:
    """What came of a probe is known, whether or not anybody waits for it."""
    if not probe.cancelled():
        probe.exception()
