"""The endpoints as a plain ASGI application: it runs under uvicorn and under Ray Serve alike.

It stands apart from Ray, so that every rule of the protocol is tested without a cluster.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.middleware.cors import CORSMiddleware

from glm_dist import __version__
from glm_dist.serve.asking import Reply
from glm_dist.serve.bodies import parse_body, read_body
from glm_dist.serve.chat_protocol import ChatRequest, TokenizeRequest
from glm_dist.serve.editor import EditorRequest
from glm_dist.serve.endpoints import Endpoints
from glm_dist.serve.errors import ApiError, add_error_handlers
from glm_dist.serve.guard import Guard
from glm_dist.serve.keys import ApiKeys, Caller, Scope
from glm_dist.serve.limits import RequestLimits
from glm_dist.serve.metrics import METRICS_TYPE, Metrics
from glm_dist.serve.openapi import describe
from glm_dist.serve.page import add_page
from glm_dist.serve.parts import Body
from glm_dist.serve.protocol import CompletionRequest, InfillRequest
from glm_dist.serve.task_protocol import (
    ClassifyRequest,
    DecisionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    ScoreRequest,
    TaskRequest,
)

_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_SHOWN_HEADERS = ("x-request-id", "x-ignored-fields", "retry-after", "x-should-retry")


@dataclass(frozen=True)
class Post:
    """A route that is asked with a body."""

    path: str
    kind: type[Body]
    answer: Callable[[Endpoints, Any, Caller], Coroutine[Any, Any, Reply]]
    scope: Scope | None = None
    """What a key needs for it; any key will do where there is none."""


POSTS = (
    Post("/v1/completions", CompletionRequest, Endpoints.completions, "generate"),
    Post("/v1/chat/completions", ChatRequest, Endpoints.chat, "generate"),
    Post("/v1/infill", InfillRequest, Endpoints.infill, "generate"),
    Post("/infill", EditorRequest, Endpoints.fill_at_cursor, "generate"),
    Post("/v1/classify", ClassifyRequest, Endpoints.classify, "classify"),
    Post("/v1/decisions", DecisionRequest, Endpoints.decisions, "classify"),
    Post("/v1/score", ScoreRequest, Endpoints.score, "classify"),
    Post("/v1/tasks/{name:path}", TaskRequest, Endpoints.answer, "tasks"),
    Post("/v1/embeddings", EmbeddingRequest, Endpoints.embeddings, "embed"),
    Post("/tokenize", TokenizeRequest, Endpoints.tokenize),
    Post("/detokenize", DetokenizeRequest, Endpoints.detokenize),
)


def build_app(
    endpoints: Endpoints | Sequence[Endpoints], keys: ApiKeys, limits: RequestLimits
) -> FastAPI:
    """The application of one model or several, which requests call by name."""
    several = [endpoints] if isinstance(endpoints, Endpoints) else endpoints
    models = {one.name: one for one in several}
    app = FastAPI(
        title="glm_dist",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    engines = {name: one.engine for name, one in models.items() if one.parent is None}
    metrics = Metrics(engines)
    for post in POSTS:
        _add_post(app, post, models, limits)
    _add_lookups(app, models, metrics)
    add_page(app)
    add_error_handlers(app, has_one_model=len(engines) == 1)
    describe(app, {post.path.replace(":path", ""): post.kind for post in POSTS})
    paths = {getattr(route, "path", "") for route in app.routes}
    metrics.know(paths)
    scopes: dict[str, Scope] = {post.path: post.scope for post in POSTS if post.scope is not None}
    app.add_middleware(
        Guard, keys=keys, metrics=metrics, scopes={**scopes, "/metrics": "metrics"}, paths=paths
    )
    if limits.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=limits.allowed_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("authorization", "content-type", "x-request-id"),
            expose_headers=_SHOWN_HEADERS,
        )
    return app


def _add_post(
    app: FastAPI, post: Post, models: Mapping[str, Endpoints], limits: RequestLimits
) -> None:
    async def answer(request: Request) -> Response:
        body = parse_body(post.kind, await read_body(request, limits), limits)
        endpoints = _choose(models, request.path_params.get("name", body.model))
        reply = await _unless_left(request, post.answer(endpoints, body, request.state.caller))
        headers = {"x-ignored-fields": _as_header(body.ignored)} if body.ignored else {}
        if isinstance(reply, dict):
            return JSONResponse(reply, headers=headers)
        return StreamingResponse(
            reply,
            media_type="text/event-stream; charset=utf-8",
            headers={**headers, **_STREAM_HEADERS},
        )

    app.add_api_route(post.path, answer, methods=["POST"], response_model=None)


def _choose(models: Mapping[str, Endpoints], name: str | None) -> Endpoints:
    """The model that is meant, which may go unnamed where there is one, adapters apart.

    Raises:
        ApiError: 404 where there is no such model, 400 where it is not said which.
    """
    whole = [one for one in models.values() if one.parent is None]
    if name is None and len(whole) == 1:
        return whole[0]
    if name is None:
        raise ApiError(400, f"model: say which: {', '.join(models)}", param="model")
    if name not in models:
        raise ApiError(
            404,
            f"model: there is no {name[:100]!r} here; there is {', '.join(models)}",
            param="model",
            code="model_not_found",
        )
    return models[name]


def _add_lookups(app: FastAPI, models: Mapping[str, Endpoints], metrics: Metrics) -> None:
    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [one.describe() for one in models.values()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return _choose(models, name).describe()

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        return next(iter(models.values())).tokenizer_info()

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/health/ready")
    @app.get("/health")
    async def ready() -> dict[str, str]:
        for one in models.values():
            await one.readiness.check()
        return {"status": "ready"}

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/metrics")
    async def prometheus() -> Response:
        return PlainTextResponse(metrics.text(), media_type=METRICS_TYPE)


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


def _as_header(names: list[str]) -> str:
    """Names of fields, as far as a header can say them."""
    return ", ".join(names)[:500].encode("ascii", "replace").decode().translate(_NO_CONTROLS)


_NO_CONTROLS = dict.fromkeys((*range(32), 127), "?")
