"""An ASGI application that can be told to take nothing new, and knows what it has in work.

It stands apart from the routes, which all end alike.
"""

from typing import Any, TypeAlias

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

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer, or refuse with 503."""
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
