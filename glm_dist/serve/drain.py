"""The application behind Ray Serve: told to take nothing new, it knows what it has in work.

It stands apart from the routes, which all end alike, and from servers that are not Serve.
"""

from typing import Any, TypeAlias

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from glm_dist.serve.errors import ApiError, error_response
from glm_dist.serve.guard import Reply

Scope: TypeAlias = dict[str, Any]
ALWAYS = ("/health/live", "/metrics", "/version")
"""Answered to the end."""


class Draining:
    """Around an application."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._in_work = 0
        self._is_draining = False

    def drain(self) -> int:
        """Refuse what comes from now on; requests that are still in work."""
        self._is_draining = True
        return self._in_work

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Answer, or refuse with 503."""
        send = _without_id(send)
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self._app(scope, receive, send)
            return
        if self._is_draining:
            error = ApiError(503, "this server is about to stop; ask again, another may answer")
            await error_response(error)(scope, receive, Reply(scope, send).send)
            return
        self._in_work += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_work -= 1


def _without_id(send: Send) -> Send:
    """Sends on without the id of a request, which Serve puts into every reply itself."""

    async def pass_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            del MutableHeaders(scope=message)["x-request-id"]
        await send(message)

    return pass_on
