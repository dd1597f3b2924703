"""Failures in the shape that OpenAI's clients read, whatever went wrong."""

from typing import Any

from glm_dist.errors import RequestError

RETRY_SECONDS = 1
_STATUS_OF_CODE = {"overloaded": 429}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
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
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message[:LONGEST_MESSAGE]
        self.param, self.code = param, code
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers.setdefault("retry-after", str(RETRY_SECONDS))

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def from_request_error(error: RequestError) -> ApiError:
    """What the engine refuses, for the client."""
    status = _STATUS_OF_CODE.get(error.code or "", 400)
    return ApiError(status, str(error), param=error.param, code=error.code)
