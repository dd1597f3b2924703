"""Discovery, transport, errors and keys, under the numbers of the behaviours."""

import time

import httpx
import jsonschema
import pytest

from glm_dist.errors import ConfigError
from glm_dist.serve.key_file import SCOPES, add_key, new_key, revoke_key
from glm_dist.serve.keys import LOOK_SECONDS, ApiKeys
from glm_dist.serve.limits import RequestLimits
from glm_dist.serve.openapi import REPLIES
from glm_dist.serve.quotas import Budget, FairOrder, duration
from glm_dist.serve.shapes import TaskReply

BODY = {"prompt": "The list", "max_tokens": 3, "temperature": 0}
JSON = {"content-type": "application/json"}


def raw(server, content, path="/v1/completions", **headers):
    return server.http.post(path, content=content, headers={**JSON, **headers})


def test_behaviour_8_replies_are_as_described(server):
    document = server.http.get("/openapi.json").json()
    schemas = document["components"]
    asked = {
        "/v1/completions": {**BODY, "logprobs": 2, "echo": True},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
        "/v1/infill": {"input": "a [MASK]", "logprobs": 1, "max_tokens": 3},
        "/infill": {"input_prefix": "a", "input_suffix": "b", "n_predict": 3},
        "/v1/classify": {"input": "a", "labels": ["x", "y"]},
        "/v1/decisions": {"input": "a", "questions": [{"type": "predicate", "instructions": "x"}]},
        "/v1/score": {"text_1": "a", "text_2": "b"},
        "/v1/embeddings": {"input": "a"},
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": [70]},
    }
    # What a tuned model answers is looked at in test_serve_task_endpoint.
    for path, kind in REPLIES.items() - {("/v1/tasks/{name}", TaskReply)}:
        url = path.replace("{name}", "tiny/glm")
        is_post = path in asked
        reply = server.http.post(url, json=asked[path]) if is_post else server.http.get(url)
        assert reply.status_code == 200, reply.text
        schema = {"$ref": f"#/components/schemas/{kind.__name__}", "components": schemas}
        jsonschema.Draft202012Validator(schema).validate(reply.json())
        if is_post:
            reference = document["paths"][path]["post"]["requestBody"]["content"]
            schema = {**reference["application/json"]["schema"], "components": schemas}
            jsonschema.Draft202012Validator(schema).validate(asked[path])


def test_behaviour_9_the_tokenizer_is_told(server):
    info = server.http.get("/tokenizer_info").json()
    assert info["eos_token"] == "<eop>"
    assert "[MASK]" in info["additional_special_tokens"]


@pytest.mark.parametrize(
    "path", ["/models", "/v1/models/", "/models/tiny/glm", "/v1/version", "/health/", "/v1/health"]
)
def test_behaviour_11_paths_of_other_bases_are_answered(server, path):
    assert server.http.get(path).status_code == 200
    assert server.http.post("/completions/", json=BODY).status_code == 200
    assert server.http.get("/nowhere/").json()["error"]["type"] == "not_found_error"


def test_behaviour_20_pages_are_let_in_by_name_only(serve, server):
    origin = "https://example.org"
    asked = {"origin": origin, "access-control-request-method": "POST"}
    closed = server.http.options("/v1/completions", headers=asked)
    assert "access-control-allow-origin" not in closed.headers
    named = serve(limits=RequestLimits(allowed_origins=(origin,)))
    assert named.http.options("/v1/completions", headers=asked).status_code == 200
    reply = named.http.post("/v1/completions", json=BODY, headers={"origin": origin})
    assert reply.headers["access-control-allow-origin"] == origin
    other = named.http.options("/v1/completions", headers={**asked, "origin": "https://evil.org"})
    assert "access-control-allow-origin" not in other.headers
    with pytest.raises(ValueError, match="allowed_origins"):
        RequestLimits(allowed_origins=("*",))


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "n": true}',
        b'{"prompt": "a", "max_tokens": 1e3}',
        b'{"prompt": "a", "max_tokens": 100000000000000000000000}',
        b'{"prompt": "a", "metadata": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"prompt": [null' + b", null" * 100_000 + b"]}",
        b'{"prompt": "a", "stop": [""]}',
        b"null",
        b"\xff\xfe",
    ],
)
def test_behaviours_26_27_and_70_what_is_no_request_is_a_short_400(server, content):
    reply = raw(server, content)
    assert reply.status_code == 400, reply.text
    assert len(reply.content) < 1000


def test_behaviour_28_too_long_says_how_long(server):
    error = server.http.post("/v1/completions", json={"prompt": [70] * 300}).json()["error"]
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (300, 256)


@pytest.mark.parametrize(
    ("change", "status"),
    [({"functions": []}, 200), ({"functions": [{}]}, 400), ({"audio": {"voice": "x"}}, 400),
     ({"modalities": ["text"]}, 200), ({"store": False}, 200), ({"store": True}, 400),
     ({"service_tier": "auto", "user": "x", "metadata": {"a": "b"}}, 200)],
)  # fmt: skip
def test_behaviours_30_and_49_what_is_not_built_is_refused_and_neutral_values_are_not(
    server, change, status
):
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, **change}
    reply = server.http.post("/v1/chat/completions", json=body)
    assert reply.status_code == status, reply.text
    assert "x-ignored-fields" not in reply.headers


def test_behaviour_31_unknown_fields_are_refused_where_that_is_set(serve):
    server = serve(limits=RequestLimits(unknown_fields="refuse"))
    reply = server.http.post("/v1/completions", json={**BODY, "warmth": 1})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "warmth")


def test_behaviour_38_and_41_an_echo_streams_with_its_logprobs_and_offsets(server, tokenizer):
    body = {**BODY, "echo": True, "logprobs": 1}
    [whole] = server.http.post("/v1/completions", json=body).json()["choices"]
    stream = server.client.completions.create(model="tiny/glm", stream=True, **body)
    parts = [part.choices[0] for part in stream]
    assert "".join(part.text for part in parts) == whole["text"]
    offsets = [one for part in parts if part.logprobs for one in part.logprobs.text_offset]
    assert offsets == whole["logprobs"]["text_offset"]


def test_behaviour_45_the_best_of_several_are_given(server):
    drawn = {"prompt": "The", "temperature": 1.5, "seed": 3, "max_tokens": 5, "logprobs": 0}
    every = server.http.post("/v1/completions", json={**drawn, "n": 4}).json()["choices"]

    def mean(choice):
        values = choice["logprobs"]["token_logprobs"]
        return sum(values) / max(1, len(values))

    [best] = server.http.post("/v1/completions", json={**drawn, "best_of": 4}).json()["choices"]
    assert best["text"] == max(every, key=mean)["text"]
    for change in ({"best_of": 4, "stream": True}, {"best_of": 2, "n": 3}):
        assert server.http.post("/v1/completions", json={**drawn, **change}).status_code == 400


def test_behaviour_47_all_wrong_biases_are_named(server):
    body = {**BODY, "logit_bias": {"x": 1, "70": 1, "y": "z"}}
    message = server.http.post("/v1/completions", json=body).json()["error"]["message"]
    assert "x, y" in message
    body["logit_bias"] = {"90000": 1, "90001": 1}
    message = server.http.post("/v1/completions", json=body).json()["error"]["message"]
    assert "90000, 90001" in message


def keys_of(tmp_path, *lines):
    (tmp_path / "keys").write_text("\n".join(lines))
    return ApiKeys.load(str(tmp_path / "keys"))


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def test_keys_have_scopes_ends_and_quotas(serve, tmp_path):
    one, line = new_key(id="search", scopes="classify", requests_per_minute="2")
    old, old_line = new_key(expires="2020-01-01")
    assert one not in line
    server = serve(keys=keys_of(tmp_path, "# remark", line, old_line))
    ask = {"input": "a", "labels": ["x", "y"]}
    assert server.http.get("/v1/models", headers=bearer(old)).status_code == 401
    assert server.http.post("/v1/completions", json=BODY, headers=bearer(one)).status_code == 403
    replies = [server.http.post("/v1/classify", json=ask, headers=bearer(one)) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert replies[0].headers["x-ratelimit-limit-requests"] == "2"
    assert replies[0].headers["x-ratelimit-remaining-requests"] == "1"
    assert int(replies[2].headers["retry-after"]) in range(1, 121)
    assert replies[2].json()["error"]["code"] == "rate_limit_exceeded"


def test_keys_come_and_go_while_the_server_runs(serve, tmp_path):
    path = tmp_path / "keys"
    first, _ = add_key(path, id="first", requests_per_minute="2")
    assert path.stat().st_mode & 0o777 == 0o600
    assert first not in path.read_text()
    server = serve(keys=ApiKeys.load(str(path)))

    def status(key):
        time.sleep(LOOK_SECONDS)
        return server.http.get("/v1/models", headers=bearer(key)).status_code

    assert status(first) == 200
    server.http.post("/v1/completions", json=BODY, headers=bearer(first))
    second, _ = add_key(path, id="second")
    assert (status(second), status(first)) == (200, 200)
    reply = server.http.post("/v1/completions", json=BODY, headers=bearer(first))
    assert reply.headers["x-ratelimit-remaining-requests"] == "0"  # of one budget all along
    revoke_key(path, "first")
    assert (status(first), status(second)) == (401, 200)
    path.write_text("none of ours")
    assert status(second) == 200
    path.write_text("# nobody")
    assert status(second) == 401
    with pytest.raises(ConfigError, match="no such key; there is none"):
        revoke_key(path, "first")


def test_wrong_lines_of_keys_are_all_named_and_never_shown(tmp_path):
    with pytest.raises(ConfigError) as caught:
        keys_of(tmp_path, "secret-1", f"{'a' * 64} scopes=fly", f"{'b' * 64} colour=red")
    assert len(caught.value.problems) == 3
    assert "secret-1" not in str(caught.value)
    assert SCOPES[0] in str(caught.value)


def test_tokens_come_back_evenly_and_answers_may_overdraw():
    now = [0.0]
    budget = Budget(tokens_per_minute=60, clock=lambda: now[0])
    budget.spend_prompt(50)
    budget.spend_answer(40)
    assert budget.headers["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(Exception, match="try again in 40s"):
        budget.spend_prompt(10)
    now[0] = 40.0
    budget.spend_prompt(10)
    assert [duration(s) for s in (0.02, 1.5, 360)] == ["20ms", "1.5s", "6m0s"]


def test_a_key_with_little_in_work_goes_before_a_backlog_and_nobody_waits_for_ever():
    order = FairOrder()
    backlog = [order.turn("busy") for _ in range(5)]
    turns = [one.__enter__() for one in backlog]
    with order.turn("calm") as calm:
        assert turns[0] <= calm < turns[1]
    for one in backlog[:-1]:
        one.__exit__(None, None, None)
    with order.turn("calm") as calm:
        assert calm >= turns[-1]


def test_a_name_pointed_at_this_machine_is_not_let_in_without_a_key(server):
    reply = server.http.get("/v1/models", headers={"host": "evil.example"})
    assert reply.status_code == 403


def test_replies_are_not_sniffed_nor_kept(server):
    headers = server.http.get("/v1/models").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]


def test_an_engine_that_gives_no_token_is_not_ready(serve, monkeypatch):
    from glm_dist.serve import readiness

    monkeypatch.setattr(readiness, "PATIENCE_SECONDS", 0.2)
    server = serve()
    monkeypatch.setattr(server.engine.engine, "step", lambda: time.sleep(0.01) or [])
    reply = httpx.get(f"{server.url}/health/ready", timeout=20)
    assert reply.status_code == 503
    assert httpx.get(f"{server.url}/health/live").status_code == 200
