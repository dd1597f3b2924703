"""Bodies without end, numbers without bounds, and texts that look like their own stream."""

import gzip
import json
import socket
import time

import httpx
import openai
import psutil
import pytest
from serving import Served, write_model

MIB = 1 << 20
LIMIT = 1_000_000
HEAD = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
TEXTS = [
    "a\n\ndata: [DONE]\n\n",
    "event: error\r\ndata: {}\r\n\r\n",
    "line\u2028paragraph\u2029next\u0085",
    "naïve 大學 🦊👩‍🚀",
    "<|assistant|> [MASK] <eop> [gMASK]",
    '{"choices": [{"text": "\\u0000"}]}',
    " \t leading and trailing \n",
]
"""What an answer may hold."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """In a process of its own, whose memory is looked at."""
    home = tmp_path_factory.mktemp("home")
    write_model(home / "tiny")
    with Served(home, "model=tiny", "--without-ray") as served:
        for _ in range(3):  # all code and caches are in memory
            httpx.post(f"{served.url}/v1/completions", json={"prompt": "a"}, timeout=120)
        yield served


def status_of(connection):
    """Of the first line that comes back."""
    connection.settimeout(120)
    return int(connection.recv(1 << 16).split(b" ", 2)[1])


def declared(connection, size):
    connection.sendall(f"{HEAD}content-length: {size}\r\n\r\n".encode())


def endless(connection):
    """Chunks until the server has answered."""
    connection.sendall(f"{HEAD}transfer-encoding: chunked\r\n\r\n".encode())
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    connection.setblocking(False)
    sent = 0
    while sent < 64 * MIB:
        try:
            sent += connection.send(chunk[sent % len(chunk) :])
        except BlockingIOError:
            time.sleep(0.001)
        except ConnectionError:
            break
        try:
            if connection.recv(1, socket.MSG_PEEK):
                break
        except BlockingIOError:
            continue
    connection.setblocking(True)
    assert sent < 8 * MIB


def bomb(connection):
    content = gzip.compress(b" " * (64 * MIB))
    head = f"{HEAD}content-encoding: gzip\r\ncontent-length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)


BODIES = {
    "one byte too many": (lambda connection: declared(connection, LIMIT + 1), 413),
    "256 MB": (lambda connection: declared(connection, 256 * MIB), 413),
    "chunks without end": (endless, 413),
    "a gzip bomb": (bomb, 415),
}


def test_bodies_without_end_cost_no_memory(server, faults):
    process, passed, slowest = psutil.Process(server.job.pid), 0, 0.0
    before = process.memory_info().rss
    for send, expected in BODIES.values():
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            send(connection)
            start = time.monotonic()
            passed += status_of(connection) == expected
            slowest = max(slowest, time.monotonic() - start)
    grown = (process.memory_info().rss - before) / MIB
    counts = {"refused_ms": f"{1e3 * slowest:.0f}", "memory_mib": f"{grown:.1f}"}
    faults.add("S9", len(BODIES), passed, **counts)
    assert passed == len(BODIES)
    assert grown < 5
    assert httpx.get(f"{server.url}/health/ready", timeout=60).status_code == 200


def test_numbers_without_bounds_are_refused_by_name_and_never_wait(server, faults):
    longest = 1024
    asked = {
        "max_tokens": {"max_tokens": 10**9},
        "n": {"n": 16_384},
        "stop": {"stop": [str(number) for number in range(10_000)]},
        "logit_bias": {"logit_bias": {str(number): 1 for number in range(100_000)}},
        "prompt": {"prompt": [70] * (longest - 1)},
    }
    passed = 0
    for param, change in asked.items():
        body = json.dumps({"prompt": "a", "max_tokens": 1, **change})
        reply = httpx.post(f"{server.url}/v1/completions", content=body, timeout=120, headers=JSON)
        # A body past the limit of bytes is refused before its fields are known.
        known = (400, param) if len(body) <= LIMIT else (413, None)
        passed += (reply.status_code, reply.json()["error"]["param"]) == known
    faults.add("S14", len(asked), passed)
    assert passed == len(asked)
    assert server.gauge("glm_waiting") == server.gauge("glm_running") == 0


JSON = {"content-type": "application/json"}


def test_texts_that_look_like_the_stream_are_read_back_exactly(server, faults):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    passed = 0
    for text in TEXTS:
        form = {"structured_outputs": {"choice": [text]}}
        stream = client.completions.create(
            model="tiny", prompt="a", max_tokens=200, stream=True, extra_body=form
        )
        parts = [part.choices[0].text for part in stream]
        passed += "".join(parts) == text
        assert not any("\ufffd" in part for part in parts)
    faults.add("S15", len(TEXTS), passed)
    assert passed == len(TEXTS)
