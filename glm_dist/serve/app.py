"""The endpoints as a plain ASGI application: it runs under uvicorn and under Ray Serve alike.

It stands apart from Ray, so that every rule of the protocol is tested without a cluster.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from glm_dist import __version__
from glm_dist.errors import GlmDistError
from glm_dist.serve.endpoints import Endpoints, Reply
from glm_dist.serve.errors import ApiError
from glm_dist.serve.keys import ApiKeys
from glm_dist.serve.metrics import METRICS_TYPE, Metrics
from glm_dist.serve.protocol import (
    Body,
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    InfillRequest,
    TokenizeRequest,
)
from glm_dist.serve.settings import RequestLimits

logger = logging.getLogger(__name__)
Handler: TypeAlias = Callable[[Any, str], Coroutine[Any, Any, Reply]]
PUBLIC_PATHS = ("/health", "/health/live", "/health/ready", "/version", "/openapi.json")
_WELL_FORMED_ID = re.compile(r"[\w.:-]{1,128}")
_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def build_app(endpoints: Endpoints, keys: ApiKeys, limits: RequestLimits) -> FastAPI:
    """The application of one model."""
    app = FastAPI(title="glm_dist", version=__version__, docs_url=None, redoc_url=None)
    metrics = Metrics(endpoints.engine)
    posts: dict[str, tuple[type[Body], Handler]] = {
        "/v1/completions": (CompletionRequest, endpoints.completions),
        "/v1/chat/completions": (ChatRequest, endpoints.chat),
        "/v1/infill": (InfillRequest, endpoints.infill),
        "/v1/classify": (ClassifyRequest, endpoints.classify),
        "/v1/embeddings": (EmbeddingRequest, endpoints.embeddings),
        "/tokenize": (TokenizeRequest, endpoints.tokenize),
        "/detokenize": (DetokenizeRequest, endpoints.detokenize),
    }
    for path, (kind, handler) in posts.items():
        _add_post(app, path, kind, handler, endpoints, limits)
    _add_lookups(app, endpoints, metrics)
    _add_errors(app)
    metrics.know({getattr(route, "path", "") for route in app.routes})
    app.middleware("http")(_guard(keys, metrics))
    return app


def _add_post(
    app: FastAPI,
    path: str,
    kind: type[Body],
    handler: Handler,
    endpoints: Endpoints,
    limits: RequestLimits,
) -> None:
    schema = {"content": {"application/json": {"schema": kind.model_json_schema()}}}

    async def answer(request: Request) -> Response:
        body = _parse(kind, await _read(request, limits))
        if body.model not in (None, endpoints.name):
            raise ApiError(
                404,
                f"model: there is no {body.model!r} here; it is {endpoints.name!r}",
                param="model",
                code="model_not_found",
            )
        reply = await _unless_left(request, handler(body, request.state.caller))
        headers = {"x-ignored-fields": ", ".join(body.ignored)[:500]} if body.ignored else {}
        if isinstance(reply, dict):
            return JSONResponse(reply, headers=headers)
        return StreamingResponse(
            reply,
            media_type="text/event-stream; charset=utf-8",
            headers={**headers, **_STREAM_HEADERS},
        )

    app.add_api_route(
        path,
        answer,
        methods=["POST"],
        response_model=None,
        openapi_extra={"requestBody": {**schema, "required": True}},
    )


def _add_lookups(app: FastAPI, endpoints: Endpoints, metrics: Metrics) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [endpoints.describe()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != endpoints.name:
            raise ApiError(404, f"there is no model {name[:100]!r}", code="model_not_found")
        return endpoints.describe()

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/health/ready")
    @app.get("/health")
    async def ready() -> dict[str, str]:
        if endpoints.engine.failure is not None:
            raise ApiError(503, "the engine is down")
        return {"status": "ready"}

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/metrics")
    async def prometheus() -> Response:
        return PlainTextResponse(metrics.text(), media_type=METRICS_TYPE)


async def _read(request: Request, limits: RequestLimits) -> bytes:
    """The body, while it is no longer than allowed."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json":
        raise ApiError(415, "content-type: has to be application/json")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limits.max_body_bytes:
            raise ApiError(413, f"the body is longer than {limits.max_body_bytes} bytes")
    return bytes(content)


def _parse(kind: type[Body], content: bytes) -> Body:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON ({str(error)[:100]})") from None
    if not isinstance(document, dict):
        raise ApiError(400, "the body is no JSON object")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"][:1])
        raise ApiError(400, f"{place}: {first['msg']}", param=place or None) from None


async def _unless_left(request: Request, work: Coroutine[Any, Any, Reply]) -> Reply:
    """What the work gives; it is dropped when the client leaves meanwhile."""
    task, leaving = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client has left")
        return task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    """Return when the client has left; the body has been read by now."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _guard(keys: ApiKeys, metrics: Metrics) -> Callable[..., Awaitable[Response]]:
    """Keys, request ids and counts, around every route, those that do not exist included."""

    async def guard(request: Request, call: Callable[..., Awaitable[Response]]) -> Response:
        given = request.headers.get("x-request-id", "")
        request_id = given if _WELL_FORMED_ID.fullmatch(given) else uuid4().hex
        request.state.caller, start = "", time.perf_counter()
        try:
            if request.url.path not in PUBLIC_PATHS:
                request.state.caller = keys.check(request.headers.get("authorization"))
            response = await call(request)
        except ApiError as error:
            response = _reply(error)
        except Exception:
            logger.exception("request %s failed", request_id)
            response = _reply(ApiError(500, "the server failed; its log has the request id"))
        response.headers["x-request-id"] = request_id
        metrics.count(request.url.path, response.status_code, time.perf_counter() - start)
        return response

    return guard


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return _reply(error)

    @app.exception_handler(GlmDistError)
    async def own_error(_: Request, error: GlmDistError) -> Response:
        return _reply(ApiError(400, str(error)))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = {
            404: f"there is no {request.url.path[:100]}",
            405: f"{request.url.path[:100]} is not asked by {request.method}",
        }.get(error.status_code, str(error.detail))
        return _reply(ApiError(error.status_code, message, headers=dict(error.headers or {})))


def _reply(error: ApiError) -> Response:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)
