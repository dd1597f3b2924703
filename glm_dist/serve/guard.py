"""What stands around every route, those that do not exist included: keys, ids, headers, counts.

It stands apart as a bare ASGI application, so that nothing holds an event of a stream back.
"""

import logging
import re
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm_dist.serve import keys as api_keys
from glm_dist.serve.errors import ApiError, error_response, request_id
from glm_dist.serve.keys import ApiKeys, Caller
from glm_dist.serve.metrics import Metrics
from glm_dist.serve.page import is_of_page

logger = logging.getLogger(__name__)
PUBLIC_PATHS = ("/health", "/health/live", "/health/ready", "/version", "/openapi.json")
_NAMED_PATH = re.compile("(/v1/(models|tasks)/).*[^/]")
"""Of one model."""
_LOOPBACK_HOST = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.ASCII)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
"""Of every reply that does not say otherwise."""


def is_public(path: str) -> bool:
    """Whether a path is answered without a key."""
    return path in PUBLIC_PATHS or is_of_page(path)


class Guard:
    """Lets requests in, and says of each what became of it."""

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        metrics: Metrics,
        scopes: Mapping[str, api_keys.Scope],
        paths: Collection[str],
    ) -> None:
        """Args: `scopes` says what a key needs for a path; `paths` are those that there are."""
        self._app, self._keys, self._metrics, self._scopes = app, keys, metrics, scopes
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = self._known_path(scope["path"])
        reply = Reply(scope, send)
        start = time.perf_counter()
        try:
            await self._answer(scope, receive, reply)
        except ApiError as error:
            await error_response(error)(scope, receive, reply.send)
        except Exception:
            logger.exception("request %s failed", reply.request_id)
            if reply.status:
                raise
            failure = ApiError(500, "the server failed; its log has the request id")
            await error_response(failure)(scope, receive, reply.send)
        finally:
            seconds = (reply.began or time.perf_counter()) - start
            self._metrics.count(_route(scope["path"]), reply.status or 499, seconds)

    async def _answer(self, scope: Scope, receive: Receive, reply: "Reply") -> None:
        with ExitStack() as stack:
            if not is_public(scope["path"]):
                reply.caller = self._admit(scope)
                if scope["method"] == "POST":
                    stack.enter_context(reply.caller.budget.request())
            scope.setdefault("state", {})["caller"] = reply.caller
            await self._app(scope, receive, reply.send)

    def _known_path(self, path: str) -> str:
        """The path that is meant by one with a slash too many, or without `/v1`."""
        plain = path.rstrip("/")
        for candidate in (path, plain, f"/v1{plain}", plain.removeprefix("/v1")):
            if candidate in self._paths or _NAMED_PATH.fullmatch(candidate):
                return candidate
        return path

    def _admit(self, scope: Scope) -> Caller:
        headers = Headers(scope=scope)
        # A page of another site whose name was pointed at this machine has no key, but would be
        # let in where none is needed.
        if self._keys.is_open and not _LOOPBACK_HOST.fullmatch(headers.get("host", "localhost")):
            raise ApiError(403, "host: without keys only this machine's own name is answered")
        caller = self._keys.check(headers.get("authorization"))
        caller.check_scope(self._scopes.get(_route(scope["path"])))
        return caller


def _route(path: str) -> str:
    """As the application has it: whichever model is named in it."""
    named = _NAMED_PATH.fullmatch(path)
    return f"{named[1]}{{name:path}}" if named else path


class Reply:
    """Sends on, with headers put in."""

    def __init__(self, scope: Scope, send: Send) -> None:
        """Args: `send` is what the server gave."""
        self.request_id = request_id(scope)
        self.caller = Caller()
        self.status, self.began = 0, 0.0
        self._send = send

    async def send(self, message: Message) -> None:
        """Send a part of the reply."""
        if message["type"] == "http.response.start":
            self.status, self.began = message["status"], time.perf_counter()
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            headers.update(self.caller.budget.headers)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)
