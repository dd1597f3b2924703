"""Discovery, errors, keys and limits: what every client of OpenAI's protocol counts on."""

import hashlib
import threading
import time

import httpx
import openai
import pytest

from glm_dist.errors import ConfigError
from glm_dist.inference import EngineLimits
from glm_dist.serve.keys import ApiKeys
from glm_dist.serve.limits import RequestLimits
from glm_dist.serve.settings import ServeSettings

BODY = {"prompt": "The list", "max_tokens": 4, "temperature": 0}


def test_models_are_listed_and_found(server):
    [model] = server.client.models.list().data
    assert model.id == "tiny/glm"
    assert server.client.models.retrieve("tiny/glm").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        server.client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_health_version_and_metrics(server):
    for path in ("/health", "/health/live", "/health/ready"):
        assert server.http.get(path).status_code == 200
    assert "version" in server.http.get("/version").json()
    server.http.post("/v1/completions", json=BODY)
    reply = server.http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'glm_requests_total{path="/v1/completions",status="200"}' in reply.text
    series = [
        line.split("{")[0].split(" ")[0] for line in reply.text.splitlines() if line[0] != "#"
    ]
    helped = {line.split(" ")[2] for line in reply.text.splitlines() if line.startswith("# HELP")}
    assert all(any(one.startswith(name) for name in helped) for one in series)


def test_the_description_is_openapi_and_names_every_route(server):
    document = server.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert "/v1/infill" in document["paths"]
    assert "prompt" in document["components"]["schemas"]["CompletionRequest"]["properties"]


JSON = {"content-type": "application/json"}
POST = "/v1/completions"


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/nowhere", {}, 404),
        ("GET", POST, {}, 405),
        ("POST", POST, {"content": b"{", "headers": JSON}, 400),
        ("POST", POST, {"json": ["x"]}, 400),
        ("POST", POST, {"content": b"x", "headers": {"content-type": "text/plain"}}, 415),
        ("POST", POST, {"json": {**BODY, "model": "other"}}, 404),
        ("POST", POST, {"content": b"[" * 100_000, "headers": JSON}, 400),
    ],
)
def test_every_failure_has_the_shape_and_an_id(server, method, path, options, status):
    reply = server.http.request(method, path, **options)
    assert reply.status_code == status, reply.text
    assert reply.json()["error"].keys() == {"message", "type", "param", "code"}
    assert isinstance(reply.json()["error"]["message"], str)
    assert reply.headers["x-request-id"]


def test_a_well_formed_request_id_is_given_back(server):
    reply = server.http.post("/v1/completions", json=BODY, headers={"x-request-id": "abc-1"})
    assert reply.headers["x-request-id"] == "abc-1"
    reply = server.http.post("/v1/completions", json=BODY, headers={"x-request-id": "a b"})
    assert reply.headers["x-request-id"] != "a b"


def test_unknown_fields_are_named_not_passed_over(server):
    reply = server.http.post("/v1/completions", json={**BODY, "warmth": 0.5})
    assert reply.status_code == 200
    assert reply.headers["x-ignored-fields"] == "warmth"


def test_a_body_that_is_too_long_is_refused_whichever_way_it_comes(serve):
    server = serve(limits=RequestLimits(max_body_bytes=2048))
    long = b'{"prompt": "' + b"x" * 5000 + b'"}'
    headers = {"content-type": "application/json"}
    for content in (long, iter([long[:100], long[100:]])):
        reply = server.http.post("/v1/completions", content=content, headers=headers)
        assert (reply.status_code, reply.json()["error"]["param"]) == (413, None)


def test_every_route_but_the_public_ones_asks_for_a_key(serve, tmp_path):
    path = tmp_path / "keys"
    path.write_text(hashlib.sha256(b"secret").hexdigest() + "\n")
    server = serve(keys=ApiKeys.load(str(path)))
    document = httpx.get(f"{server.url}/openapi.json").json()
    for route, methods in document["paths"].items():
        for method in methods:
            reply = server.http.request(method, route.replace("{name}", "x"), json={})
            is_public = route.startswith("/health") or route == "/version"
            assert (reply.status_code == 401) is not is_public, route
            if not is_public:
                assert reply.headers["www-authenticate"] == "Bearer"
                assert reply.json()["error"]["code"] == "invalid_api_key"
    assert server.http.get("/nowhere").status_code == 401
    for key, status in (("secret", 200), ("Secret", 401), ("x", 401)):
        headers = {"authorization": f"Bearer {key}"}
        assert server.http.get("/v1/models", headers=headers).status_code == status


def test_keys_are_read_as_hashes_only(tmp_path):
    (tmp_path / "keys").write_text("my-secret-key\n")
    with pytest.raises(ConfigError, match="is no SHA-256") as caught:
        ApiKeys.load(str(tmp_path / "keys"))
    assert "my-secret-key" not in str(caught.value)


def test_listening_to_the_world_takes_keys():
    with pytest.raises(ValueError, match="without api_keys"):
        ServeSettings(host="0.0.0.0")
    assert ServeSettings(host="0.0.0.0", api_keys="keys").port == 8000


def wait_until_idle(server):
    deadline = time.monotonic() + 60
    while server.engine.stats.running or server.engine.stats.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_that_leaves_frees_what_it_held(server):
    body = {**BODY, "max_tokens": 110, "ignore_eos": True, "n": 8}
    with server.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
        assert next(reply.iter_lines()).startswith('data: {"id"')
    wait_until_idle(server)
    before = server.engine.stats.generated_tokens
    with pytest.raises(httpx.TimeoutException):
        server.http.post("/v1/completions", json=body, timeout=0.05)
    wait_until_idle(server)
    assert server.engine.stats.generated_tokens - before < 8 * 110
    assert server.engine.stats.free_blocks == server.engine.stats.total_blocks


def test_more_than_may_wait_is_refused_at_once_and_what_was_taken_ends(serve):
    limits = EngineLimits(max_running=1, max_waiting=2)
    server = serve(engine_limits=limits)
    statuses, replies = [], []

    def ask():
        body = {**BODY, "max_tokens": 60, "ignore_eos": True}
        reply = server.http.post("/v1/completions", json=body)
        statuses.append(reply.status_code)
        replies.append(reply)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    server.client.completions.create(model="tiny/glm", **BODY)
