"""Requests that nobody means well: thousands of them, and none may hurt the server."""

import json
import random
import time

import psutil
import pytest

from glm_dist.inference import EngineLimits

CASES = 10_000
WARM = 2_000
"""Cases until caches, pools and code are all in memory."""
SLOWEST_SECONDS = 2.0
GROWTH = 1.10
VALID = {
    "/v1/completions": {"prompt": "The list", "max_tokens": 4, "temperature": 1, "n": 1,
                        "stop": "x", "logprobs": 1, "echo": False, "seed": 1,
                        "logit_bias": {"70": 1}},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4,
                             "tools": [{"type": "function", "function": {"name": "find"}}],
                             "logprobs": True, "top_logprobs": 1, "tool_choice": "auto"},
    "/v1/infill": {"input": "a [MASK] b [MASK]", "max_tokens": 4, "order": "left_to_right"},
    "/infill": {"input_prefix": "a", "input_suffix": "b", "n_predict": 4},
    "/v1/classify": {"input": ["a", "b"], "labels": ["x", "y"]},
    "/v1/decisions": {"input": "a", "questions": [{"type": "predicate", "instructions": "x"}]},
    "/v1/score": {"text_1": "a", "text_2": ["b", "c"]},
    "/v1/embeddings": {"input": ["a", "b"], "encoding_format": "float"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [70, 71]},
}  # fmt: skip
HOSTILE = [
    None, True, False, 0, -1, 1, 2, 1 << 31, -(1 << 63), 10**23, 0.5, -0.0, 1e308, 5e-324, "", "x",
    "\0", "\n\ndata: x", "\u2028", "大學🦊", "[MASK]", "<|assistant|>", "x" * 5_000, [], {}, [[]],
    [None], [""], [0] * 300, [-1], ["x"] * 100, {"x": 1}, {"": None}, [{"role": "user"}],
    {"type": "json_object"}, {"9" * 30: 1}, ["https://example.org/a.png"],
]  # fmt: skip
RAW = [
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b'"\\ud800"', b'"\\u0000"', b"\xff\xfe", b"01",
    b"[" * 2_000, b'{"a":' * 200 + b"1" + b"}" * 200, b"9" * 5_000, b"'x'", b"", b"-", b'"\\x"',
]  # fmt: skip
MARK = "@raw@"


def places(value, at=()):
    """All places inside a document, itself included."""
    yield at
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(one, (*at, key))


def put(value, at, new):
    """The document with another value at a place."""
    if not at:
        return new
    copy = value.copy()
    copy[at[0]] = put(value[at[0]], at[1:], new)
    return copy


def case(rng, fields):
    """A path, and a body that is wrong in one way or in several."""
    path = rng.choice(list(VALID))
    body = VALID[path]
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind = rng.randrange(4)
        if kind == 0 and isinstance(body, dict):
            body = {**body, rng.choice(fields[path]): rng.choice(HOSTILE)}
        elif kind == 1 and isinstance(body, dict) and body:
            left_out = rng.choice(list(body))
            body = {name: value for name, value in body.items() if name != left_out}
        else:
            new = MARK if kind == 2 else rng.choice(HOSTILE)
            body = put(body, rng.choice(list(places(body))), new)
    content = json.dumps(body).encode()
    content = content.replace(json.dumps(MARK).encode(), rng.choice(RAW))
    broken = rng.randrange(20)
    if broken == 0:
        content = content[: rng.randrange(len(content) + 1)]
    elif broken == 1 and content:
        at = rng.randrange(len(content))
        content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    elif broken == 2:
        content = content.replace(b"{", b'{"model": "a", "model": "b", ', 1)
    return path, content


def is_answer(reply):
    """Whether a reply is one that was promised: a success, or a failure in its shape."""
    if reply.status_code == 200:
        return True
    error = reply.json()["error"]
    return 400 <= reply.status_code < 500 and {"message", "type", "param", "code"} <= error.keys()


@pytest.mark.slow
def test_ten_thousand_hostile_requests_hurt_nobody(serve, faults):
    server = serve(engine_limits=EngineLimits(cache_tokens=4096))
    document = server.http.get("/openapi.json").json()
    fields = {
        path: list(document["components"]["schemas"][_schema(document, path)]["properties"])
        for path in VALID
    }
    rng, process = random.Random(8), psutil.Process()
    statuses, slowest, wrong, before = {}, (0.0,), [], 0
    for number in range(CASES):
        if number == WARM:
            before = process.memory_info().rss
        path, content = case(rng, fields)
        start = time.perf_counter()
        reply = server.http.post(
            path, content=content, headers={"content-type": "application/json"}
        )
        slowest = max(slowest, (time.perf_counter() - start, path, content[:300]))
        statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
        if not is_answer(reply):
            wrong.append((path, content[:300], reply.status_code, reply.text[:300]))
    grown = process.memory_info().rss / before
    faults.add(
        "S8",
        CASES,
        CASES - len(wrong),
        statuses=" ".join(f"{status}:{count}" for status, count in sorted(statuses.items())),
        slowest_seconds=round(slowest[0], 2),
        memory_growth=round(grown, 3),
    )
    assert not wrong, wrong[:3]
    assert len(statuses) > 1
    assert slowest[0] < SLOWEST_SECONDS, slowest
    assert grown <= GROWTH
    assert server.engine.stats.free_blocks == server.engine.stats.total_blocks
    assert server.http.get("/health/ready").status_code == 200


def _schema(document, path):
    content = document["paths"][path]["post"]["requestBody"]["content"]
    return content["application/json"]["schema"]["$ref"].rpartition("/")[2]
