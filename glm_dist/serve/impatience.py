"""Connections of clients that are too slow, hung up on: in sending a header, or in reading.

It stands apart from the application, which hears of a request when its header is complete, and of a
reader never. Slow bodies are the application's (`read_body`).
"""

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from uvicorn.protocols.http import auto

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol
else:
    Protocol = auto.AutoHTTPProtocol


class ImpatientProtocol(Protocol):
    """uvicorn's HTTP protocol with an end to its patience."""

    header_seconds: ClassVar[float] = 10.0
    """A connection has so long until the header of a request is complete."""
    reading_seconds: ClassVar[float] = 10.0
    """What was sent may wait so long for a client that has stopped reading."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come, and owes a header."""
        super().connection_made(transport)
        self._unread: asyncio.TimerHandle | None = None
        self._owed: asyncio.TimerHandle | None = None
        self._expect_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        super().connection_lost(exc)
        self._stop_waiting()
        if self._unread is not None:
            self._unread.cancel()

    def data_received(self, data: bytes) -> None:
        """A part of a header or of a body."""
        before: Any = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()
        elif self._owed is None and (before is None or before.response_complete):
            self._expect_header()

    def pause_writing(self) -> None:
        """More waits to be read than should."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.reading_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It was read."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _expect_header(self) -> None:
        self._owed = self.loop.call_later(self.header_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._owed is not None:
            self._owed.cancel()
            self._owed = None


def be_impatient(header_seconds: float, reading_seconds: float) -> None:
    """From now on servers of this process that choose their protocol themselves use this one."""
    ImpatientProtocol.header_seconds = header_seconds
    ImpatientProtocol.reading_seconds = reading_seconds
    auto.AutoHTTPProtocol = ImpatientProtocol
