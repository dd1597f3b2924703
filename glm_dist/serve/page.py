"""The playground page: static files, without a build step and without anything from elsewhere.

It stands apart as the only part of the application that answers browsers rather than programs.
"""

from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).with_suffix("")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
"""`no-cache` asks for the ETag each time, so that a page never mixes files of two releases."""


class PageFiles(StaticFiles):
    """The files of the page, each with the headers that keep foreign code out."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, or that the browser's copy is the same."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def add_page(app: FastAPI) -> None:
    """Answer `/` with the page, and `/page/…` with what it is made of."""
    files = PageFiles(directory=FOLDER)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    app.mount("/page", files)


def is_of_page(path: str) -> bool:
    """Whether a path is open without a key because only files of the package lie there."""
    return path == "/" or path.startswith("/page/")
