"""From the bytes of a request to a body that is checked, before anything is spent on it.

It stands apart as the one place that reads what strangers send.
"""

import asyncio
import json
import re
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from glm_dist.serve.errors import ApiError
from glm_dist.serve.limits import RequestLimits
from glm_dist.serve.parts import Body

B = TypeVar("B", bound=Body)
JSON_TYPE = "application/json"
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
_CLOSE = {"connection": "close"}
"""The rest of a body that nobody reads would be taken for the next request."""


async def read_body(request: Request, limits: RequestLimits) -> bytes:
    """The whole body, while it is no longer and no slower than allowed.

    Raises:
        ApiError: 408, 413 or 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON_TYPE:
        raise ApiError(415, f"content-type: has to be {JSON_TYPE}", headers=_CLOSE)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "content-encoding: send the body as it is", headers=_CLOSE)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > limits.max_body_bytes:
        raise _too_long(limits)
    content = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                if len(content) + len(part) > limits.max_body_bytes:
                    raise _too_long(limits)
                content += part
    except ClientDisconnect:
        raise ApiError(499, "the client has left") from None
    except TimeoutError:
        raise ApiError(
            408, f"the body took longer than {limits.body_seconds:g} s", headers=_CLOSE
        ) from None
    return bytes(content)


def parse_body(kind: type[B], content: bytes, limits: RequestLimits) -> B:
    """The body as its kind.

    Raises:
        ApiError: 400, with the field where one is to blame.
    """
    document = _parse_json(content, limits)
    if not isinstance(document, dict):
        raise ApiError(400, "the body is no JSON object")
    try:
        body = kind.model_validate(document)
    except ValidationError as error:
        raise _wrong_field(error) from None
    body.check_neutral()
    if body.ignored and limits.unknown_fields == "refuse":
        names = ", ".join(body.ignored)
        raise ApiError(400, f"unknown fields: {names}; leave them out", param=body.ignored[0][:64])
    return body


def _parse_json(content: bytes, limits: RequestLimits) -> Any:
    if _depth(content) > limits.max_json_depth:
        raise ApiError(400, f"the body nests lists and objects deeper than {limits.max_json_depth}")
    try:
        document = json.loads(
            content, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant
        )
        if _HALF_CHARACTER.search(content):
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "the body holds half of a character (a lone surrogate)") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON ({str(error)[:100]})") from None
    return document


def _depth(content: bytes) -> int:
    """How deep brackets nest outside strings."""
    marks = np.frombuffer(_STRING.sub(b"", content), dtype=np.uint8)
    opened = (marks == ord("[")) | (marks == ord("{"))
    closed = (marks == ord("]")) | (marks == ord("}"))
    steps = opened.astype(np.int32) - closed
    return int(steps.cumsum().max(initial=0))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object names a field twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _wrong_field(error: ValidationError) -> ApiError:
    """The first problem, without what was sent."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not _is_branch(part))[:64]
    param = str(first["loc"][0])[:64] if first["loc"] else None
    return ApiError(400, f"{place}: {first['msg']}", param=param)


def _is_branch(part: int | str) -> bool:
    """Whether pydantic names an alternative of a union, which is no place in the body."""
    return isinstance(part, str) and bool(re.search(r"[\[(,]|^(str|int|bool|float|list)$", part))


def _too_long(limits: RequestLimits) -> ApiError:
    return ApiError(413, f"the body is longer than {limits.max_body_bytes:,} bytes", headers=_CLOSE)
