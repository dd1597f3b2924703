"""Failures in the shape that OpenAI's clients read, whatever went wrong."""

import re
from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from glm_dist.errors import GlmDistError, RequestError

RETRY_SECONDS = 1
OVERLOADED = "overloaded"
_STATUS_OF_CODE = {OVERLOADED: 429}
FULL_FOR, FULL_SECONDS = "x-full-for", "0.1"
"""Header of a refusal that stands for all that would come for so many seconds. The proxy keeps it
to itself and repeats the refusal, so that a flood takes little from what is answered."""
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
_WELL_FORMED_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
LONGEST_MESSAGE = 500
"""Characters; what a client sent is never echoed at length."""


class ApiError(Exception):
    """A reply that is no success."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        **numbers: int,
    ) -> None:
        """Args: `numbers` stand beside the message, for programs."""
        super().__init__(message)
        self.status, self.message = status, _printable(message)
        self.param, self.code, self.numbers = param, code, numbers
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers.setdefault("retry-after", str(RETRY_SECONDS))
        if status == 500:
            # A client must not send again what may have been half done.
            self.headers.setdefault("x-should-retry", "false")

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
                **self.numbers,
            }
        }


class NoRoomError(RequestError):
    """Nothing can be taken in at all, whatever it asks for."""


def from_request_error(error: RequestError) -> ApiError:
    """What the engine refuses, for the client."""
    status = _STATUS_OF_CODE.get(error.code or "", 400)
    headers = {FULL_FOR: FULL_SECONDS} if isinstance(error, NoRoomError) else {}
    return ApiError(status, str(error), param=error.param, code=error.code, headers=headers)


def request_id(scope: Scope) -> str:
    """What the client calls a request, or else a name for it."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _WELL_FORMED_ID.fullmatch(given) else uuid4().hex


def error_response(error: ApiError) -> Response:
    """The reply of a failure."""
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


def add_error_handlers(app: FastAPI, *, has_one_model: bool) -> None:
    """Give failures their shape, those of routing included.

    Where one model of several has no room, the others may have some.
    """

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        if not has_one_model:
            error.headers.pop(FULL_FOR, None)
        return error_response(error)

    @app.exception_handler(GlmDistError)
    async def own_error(_: Request, error: GlmDistError) -> Response:
        return error_response(ApiError(400, str(error)))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:100]
        message = {
            404: f"there is no {path}",
            405: f"{path} is not asked by {request.method}",
        }.get(error.status_code, str(error.detail))
        return error_response(
            ApiError(error.status_code, message, headers=dict(error.headers or {}))
        )


def _printable(message: str) -> str:
    """At most `LONGEST_MESSAGE` characters that UTF-8 can write."""
    return message[:LONGEST_MESSAGE].encode(errors="replace").decode()
