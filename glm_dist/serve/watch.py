"""Whether an engine still answers, proven by a token a while.

It stands apart because a process that lives, listens and says so can still be unable to generate:
a step that never ends, weights that have become no numbers, a thread that has died.
"""

import asyncio
import itertools
import time
from collections.abc import Callable

from glm_dist.errors import RequestError
from glm_dist.inference import Failure
from glm_dist.serve.engine_thread import EngineThread
from glm_dist.serve.probe import probe
from glm_dist.serve.settings import WatchSettings

LOOK_SECONDS = 0.5
"""Between two looks at an engine."""


class Watch:
    """Looks at one engine, and asks it for a token where nobody else does."""

    def __init__(self, engine: EngineThread, settings: WatchSettings) -> None:
        self._engine, self._settings = engine, settings
        self._broken: str | None = None
        self._num_failures = 0
        self._numbers = itertools.count()

    @property
    def trouble(self) -> str | None:
        """Why nothing should be asked of it now; None where it answers."""
        if self._stuck_seconds > self._settings.unready_seconds:
            return f"a step has taken {self._stuck_seconds:.0f} s"
        idle = time.monotonic() - self._engine.pulse.last_output
        if idle > self._settings.unready_seconds + 2 * self._settings.probe_seconds:
            return f"it has given no token for {idle:.0f} s"
        return self.verdict

    @property
    def verdict(self) -> str | None:
        """Why it will not recover and has to be replaced; None while it may."""
        if self._engine.failure is not None:
            return f"the engine broke down: {self._engine.failure}"
        if self._stuck_seconds > self._settings.wedged_seconds:
            return f"a step has taken {self._stuck_seconds:.0f} s"
        return self._broken

    async def probe(self) -> None:
        """Ask for a token, before all that wait; what comes of it is in `verdict`."""
        engine = self._engine.engine
        request = probe(f"probe-{next(self._numbers)}", engine.tokenizer, engine.settings)
        try:
            stream = await self._engine.submit(request)
            outputs = [output async for output in stream.outputs()]
        except RequestError:
            return  # others wait already, and show whether tokens come
        except RuntimeError as error:
            self._broken = str(error)
            return
        broken = next((each for each in outputs if isinstance(each, Failure)), None)
        self._broken = None if broken is None else f"a probe failed: {broken.message}"

    async def run(self, on_verdict: Callable[[str], None]) -> None:
        """Look until the engine is beyond hope, and say so."""
        probing: asyncio.Task[None] | None = None
        while self.verdict is None:
            await asyncio.sleep(LOOK_SECONDS)
            if (probing is None or probing.done()) and self._is_due():
                self._num_failures = self._engine.pulse.num_failures
                probing = asyncio.create_task(self.probe())
        on_verdict(self.verdict)

    def _is_due(self) -> bool:
        """Whether no token came for a while, or a request broke: the engine may have, too."""
        pulse = self._engine.pulse
        idle = time.monotonic() - pulse.last_output
        return idle > self._settings.probe_seconds or pulse.num_failures > self._num_failures

    @property
    def _stuck_seconds(self) -> float:
        since = self._engine.pulse.working_since
        return 0.0 if since is None else time.monotonic() - since
