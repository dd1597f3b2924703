"""What our servers' manners ask of Ray Serve's HTTP proxy, in whose process this runs.

It stands apart because Serve answers by itself where no front can: in plain text, with the status
of its own choice. Serve calls `middlewares` by its import path, which `environment` gives.
"""

import math
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm_dist.serve.errors import (
    FULL_FOR,
    OVERLOADED,
    ApiError,
    error_response,
    request_id,
)
from glm_dist.serve.impatience import ImpatientProtocol, be_impatient
from glm_dist.serve.limits import RequestLimits

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
HEADER_SECONDS, READING_SECONDS = "GLM_DIST_HEADER_SECONDS", "GLM_DIST_READING_SECONDS"
OURS = "x-content-type-options"
"""Header of every reply of the application."""
_FAILURES = {
    404: (503, "nothing is served here yet, or no longer; ask again"),
    408: (408, "the request took too long"),
    429: (429, "too many requests wait; ask again later"),
    503: (503, "no server can take this request now; ask again"),
}
"""Status of Serve: ours, and what it means. All others are failures of the server."""


def environment(limits: RequestLimits) -> dict[str, str]:
    """Variables that a Ray needs when it starts, for proxies to behave."""
    return {
        CALLBACK: "glm_dist.serve.proxy.middlewares",
        HEADER_SECONDS: str(limits.header_seconds),
        READING_SECONDS: str(limits.reading_seconds),
    }


def haproxy_environment(limits: RequestLimits) -> dict[str, str]:
    """Variables that a Ray needs when it starts, for Serve to put HAProxy before the fronts.

    It has one patience for clients that neither send nor read.
    """
    patience = max(limits.header_seconds, limits.body_seconds, limits.reading_seconds)
    values = {
        "TIMEOUT_CLIENT_S": math.ceil(patience),
        "STATS_PORT": _free_port(),
        "METRICS_PORT": _free_port(),
    }
    named = {f"RAY_SERVE_HAPROXY_{name}": str(value) for name, value in values.items()}
    return {"RAY_SERVE_ENABLE_HA_PROXY": "1", **named}


def middlewares() -> list[Middleware]:
    """Called in the proxy's process before it listens."""
    defaults = ImpatientProtocol
    be_impatient(
        float(os.environ.get(HEADER_SECONDS, defaults.header_seconds)),
        float(os.environ.get(READING_SECONDS, defaults.reading_seconds)),
    )
    return [Middleware(Refusals)]


class Refusals:
    """Puts what Serve refuses into the shape of our own, and repeats what a front refuses to all.

    A refusal costs a dozen milliseconds on its way through Serve and a front; here it costs one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._full_until: dict[str, float] = {}
        """By the path of an application, by the monotonic clock."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its reply back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        place = _asked(scope)
        if place is not None and time.monotonic() < self._full_until.get(place, 0):
            await error_response(_full(scope))(scope, receive, send)
            return
        refused: Mapping[str, Any] | None = None

        async def pass_on(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and place is not None:
                headers = MutableHeaders(scope=message)
                if FULL_FOR in headers:
                    self._full_until[place] = time.monotonic() + float(headers[FULL_FOR])
                    del headers[FULL_FOR]
            if message["type"] == "http.response.start" and _is_refusal(message):
                refused = message
            elif refused is None:
                await send(message)
            elif not message.get("more_body", False):
                await error_response(_failure(refused))(scope, receive, send)

        await self._app(scope, receive, pass_on)


def _free_port() -> int:
    with socket.create_server(("", 0)) as probe:
        return int(probe.getsockname()[1])


def _asked(scope: Scope) -> str | None:
    """The path of the application whose engines a request is for; None where it is for none."""
    root, version, _ = scope["path"].partition("/v1/")
    return root if version and scope["method"] == "POST" else None


def _full(scope: Scope) -> ApiError:
    headers = {"x-request-id": request_id(scope), OURS: "nosniff"}
    return ApiError(429, _FAILURES[429][1], code=OVERLOADED, headers=headers)


def _is_refusal(message: Message) -> bool:
    return message["status"] >= 400 and OURS not in Headers(raw=message["headers"])


def _failure(message: Mapping[str, Any]) -> ApiError:
    otherwise = (500, "the server failed; its log has the request id")
    status, text = _FAILURES.get(message["status"], otherwise)
    given = Headers(raw=message["headers"])
    kept = {name: given[name] for name in ("x-request-id", "retry-after") if name in given}
    return ApiError(status, text, headers=kept)
