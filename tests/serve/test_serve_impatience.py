"""Clients that are slow on purpose, by raw sockets, and what Ray Serve says by itself."""

import asyncio
import json
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http import auto

from glm_dist.serve.errors import FULL_FOR
from glm_dist.serve.impatience import ImpatientProtocol, be_impatient
from glm_dist.serve.proxy import OURS, Refusals

HEADER_SECONDS, READING_SECONDS = 0.6, 0.8
ENDED = threading.Event()


async def endless(request):
    async def parts():
        try:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)
        finally:
            ENDED.set()

    return StreamingResponse(parts())


async def slow(request):
    await asyncio.sleep(2 * HEADER_SECONDS)
    return PlainTextResponse("done")


async def refuse(request):
    status = int(request.path_params["status"])
    headers = {"x-request-id": "7", "retry-after": "3"} if status == 429 else {}
    return PlainTextResponse("Traceback: secret", status, headers)


async def ours(request):
    return PlainTextResponse("own words", 404, {OURS: "nosniff"})


ROUTES = [
    Route("/endless", endless),
    Route("/slow", slow, methods=["GET", "POST"]),
    Route("/refuse/{status}", refuse),
    Route("/ours", ours),
]


@pytest.fixture(scope="module")
def address():
    before = auto.AutoHTTPProtocol, ImpatientProtocol.header_seconds
    be_impatient(HEADER_SECONDS, READING_SECONDS)
    app = Refusals(Starlette(routes=ROUTES))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=asyncio.run, args=(server.serve(),))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join()
    auto.AutoHTTPProtocol, ImpatientProtocol.header_seconds = before


def is_hung_up(client, seconds):
    """Whether the server closes the connection in about so long, and not before."""
    client.settimeout(seconds + 5)
    start = time.monotonic()
    try:
        while client.recv(65536):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - start > seconds / 2


def dribble(client, seconds):
    """A byte now and then, until the server has had enough of it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        client.sendall(b"G")
        time.sleep(HEADER_SECONDS / 5)


@pytest.mark.parametrize("begun", [b"", b"GET /slow HTTP/1.1\r\nhost: a\r\n"])
def test_a_header_that_does_not_come_is_not_waited_for(address, begun):
    with socket.create_connection(address) as client:
        client.sendall(begun)
        assert is_hung_up(client, HEADER_SECONDS)


def test_neither_is_one_that_comes_byte_by_byte_nor_the_second_on_a_connection(address):
    with socket.create_connection(address) as client:
        client.sendall(b"GET /ours HTTP/1.1\r\nhost: a\r\n\r\n")
        client.settimeout(5)
        reply = b""
        while not reply.endswith(b"own words"):  # header and body may come apart
            reply += client.recv(65536)
        with pytest.raises(ConnectionError):
            dribble(client, 5)


def test_whoever_sent_a_header_may_wait_for_the_reply(address):
    with socket.create_connection(address) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        client.settimeout(5)
        assert b"200 OK" in client.recv(65536)


def test_who_stops_reading_is_hung_up_on_and_the_reply_ends(address):
    ENDED.clear()
    with socket.create_connection(address) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
        assert client.recv(1024)
        assert ENDED.wait(READING_SECONDS + 10)


def test_who_reads_slowly_is_not(address):
    ENDED.clear()
    with socket.create_connection(address) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
        deadline = time.monotonic() + 2 * READING_SECONDS
        while time.monotonic() < deadline:
            assert client.recv(1 << 20)
            time.sleep(0.01)
        assert not ENDED.is_set()


@pytest.mark.parametrize(
    ("status", "told", "kind"),
    [
        (404, 503, "server_error"),
        (429, 429, "rate_limit_error"),
        (500, 500, "server_error"),
        (503, 503, "server_error"),
        (504, 500, "server_error"),
    ],
)
def test_what_serve_refuses_by_itself_has_the_shape_of_ours(address, status, told, kind):
    url = f"http://{address[0]}:{address[1]}"
    reply = httpx.get(f"{url}/refuse/{status}")
    assert reply.status_code == told
    error = json.loads(reply.text)["error"]
    assert (error["type"], error["param"]) == (kind, None)
    assert "secret" not in reply.text
    if told in (429, 503):
        assert int(reply.headers["retry-after"]) >= 1
    if status == 429:
        assert (reply.headers["retry-after"], reply.headers["x-request-id"]) == ("3", "7")


def test_what_the_application_says_stays_as_it_is(address):
    reply = httpx.get(f"http://{address[0]}:{address[1]}/ours")
    assert (reply.status_code, reply.text) == (404, "own words")


def test_a_refusal_that_stands_for_all_is_repeated_for_as_long_as_it_says():
    asked = []

    async def app(scope, receive, send):
        asked.append(scope["path"])
        status = 429 if "full" in scope["path"] else 200
        headers = {OURS: "nosniff"} | ({FULL_FOR: "0.3"} if status == 429 else {})
        await PlainTextResponse("told", status, headers)(scope, receive, send)

    async def ask():
        transport = httpx.ASGITransport(Refusals(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            first = await http.post("/v1/full", headers={"x-request-id": "7"})
            repeated = await http.post("/v1/completions", headers={"x-request-id": "8"})
            passed = [await http.get("/v1/models"), await http.post("/tokenize")]
            passed.append(await http.post("/other/v1/completions"))
            await asyncio.sleep(0.35)
            passed.append(await http.post("/v1/completions"))
            return first, repeated, passed

    first, repeated, passed = asyncio.run(ask())
    assert (first.status_code, first.text) == (429, "told")
    assert FULL_FOR not in first.headers
    assert (repeated.status_code, repeated.json()["error"]["code"]) == (429, "overloaded")
    assert (repeated.headers["x-request-id"], repeated.headers["retry-after"]) == ("8", "1")
    assert [reply.status_code for reply in passed] == [200] * 4
    assert len(asked) == 5
