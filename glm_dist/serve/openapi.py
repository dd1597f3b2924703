"""`/openapi.json`: every body, every answer, every failure, in OpenAPI 3.1.

It stands apart because replies are built as plain dictionaries, and only described by models.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from glm_dist.serve import shapes
from glm_dist.serve.parts import Body, Part

_TEMPLATE = "#/components/schemas/{model}"
_FAILURES = {
    "400": "The request is wrong; `param` names the field.",
    "401": "The key is missing or unknown.",
    "403": "The key, or the host name, is not for this.",
    "404": "There is no such model.",
    "408": "The body came too slowly.",
    "413": "The body is too long.",
    "415": "The body is no JSON.",
    "429": "Too much is asked at once; `retry-after` says when to come back.",
    "500": "The server failed.",
    "503": "The model does not answer now; `retry-after` says when to come back.",
}
_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "Name of the model; slashes in it stand as they are.",
    "schema": {"type": "string"},
}
_STREAMED = ("/v1/completions", "/v1/chat/completions", "/v1/infill", "/infill")
REPLIES: dict[str, type[BaseModel]] = {
    "/v1/completions": shapes.CompletionReply,
    "/v1/chat/completions": shapes.ChatReply,
    "/v1/infill": shapes.InfillReply,
    "/infill": shapes.EditorReply,
    "/v1/classify": shapes.ClassifyReply,
    "/v1/decisions": shapes.DecisionReply,
    "/v1/score": shapes.ScoreReply,
    "/v1/tasks/{name}": shapes.TaskReply,
    "/v1/embeddings": shapes.EmbeddingReply,
    "/tokenize": shapes.TokenizeReply,
    "/detokenize": shapes.DetokenizeReply,
    "/v1/models": shapes.ModelList,
    "/v1/models/{name}": shapes.Model,
    "/tokenizer_info": shapes.TokenizerInfo,
    "/health": shapes.Health,
    "/health/ready": shapes.Health,
    "/health/live": shapes.Health,
    "/version": shapes.Version,
}


def describe(app: FastAPI, bodies: Mapping[str, type[Body]]) -> None:
    """Give the application its description, made once.

    Args:
        app: with all its routes.
        bodies: what is sent to each route that takes a body.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, bodies)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, bodies: Mapping[str, type[Body]]) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    described = {*bodies.values(), *REPLIES.values(), shapes.Error}
    models: list[Any] = [(kind, "validation") for kind in sorted(described, key=str)]
    _, schemas = models_json_schema(models, ref_template=_TEMPLATE)
    document["components"] = {
        "schemas": schemas["$defs"],
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    document["security"] = [{}, {"key": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"] = _responses(path, has_body=path in bodies)
            if "{name}" in path:
                operation["parameters"] = [_NAME]
            if path in bodies:
                operation["requestBody"] = {
                    "required": True,
                    "content": {"application/json": {"schema": _ref(bodies[path])}},
                }
    return document


def _responses(path: str, *, has_body: bool) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if path in REPLIES:
        content["application/json"] = {"schema": _ref(REPLIES[path])}
    else:
        content["text/plain"] = {"schema": {"type": "string"}}
    if path in _STREAMED:
        # No schema: readers differ on whether it is of one event or of the whole text.
        content["text/event-stream"] = {}
    failures = (
        _FAILURES
        if has_body
        else {
            status: text
            for status, text in _FAILURES.items()
            if status in ("401", "403", "404", "503")
        }
    )
    described = {
        status: {
            "description": text,
            "content": {"application/json": {"schema": _ref(shapes.Error)}},
        }
        for status, text in failures.items()
    }
    return {"200": {"description": "The answer.", "content": content}, **described}


def _ref(kind: type[Part] | type[BaseModel]) -> dict[str, str]:
    return {"$ref": _TEMPLATE.format(model=kind.__name__)}
