"""vLLM behind our endpoints: the answers of our own engine, and what it cannot is said by name.

GLM_DIST_VLLM_PYTHON=.venv-vllm/bin/python pytest -m slow tests/jobs/test_jobs_serve_vllm.py
"""

import json
import os

import httpx
import numpy as np
import openai
import pytest
from serving import Served, write_model

from glm_dist.engine.export import export_model

PYTHON = os.environ.get("GLM_DIST_VLLM_PYTHON")
SHAPE = {
    "positions": "rotary_half", "norm": "rmsnorm", "mlp": "swiglu", "bias": "qkv", "causal": True,
    "num_layers": 2, "hidden_size": 128, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32,
}  # fmt: skip
"""GLM-4's block."""
GREEDY = {"prompt": "The list", "temperature": 0, "max_tokens": 24}
CPU_OPTIONS = {"enforce_eager": True}

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="takes an environment with vLLM"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    write_model(folder / "own" / "tiny", **SHAPE)
    export_model(folder / "own" / "tiny", folder / "exported" / "tiny")
    return folder


@pytest.fixture(scope="module")
def servers(home):
    hosted = json.dumps({"python": PYTHON, "options": CPU_OPTIONS})
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with (
        Served(home, "model=exported/tiny") as ours,
        Served(home, "model=exported/tiny", f"vllm={hosted}", environment=environment) as theirs,
    ):
        yield ours.url, theirs.url


def ask(url, path, **body):
    return httpx.post(f"{url}{path}", json=body, timeout=120).json()


def test_greedy_texts_are_equal_and_logprobs_close(servers):
    ours, theirs = (ask(url, "/v1/completions", **GREEDY, logprobs=2) for url in servers)
    one, other = ours["choices"][0], theirs["choices"][0]
    assert other["text"] == one["text"]
    assert other["finish_reason"] == one["finish_reason"]
    found, expected = (each["logprobs"]["token_logprobs"] for each in (other, one))
    assert np.allclose(found, expected, atol=1e-3)
    assert theirs["usage"]["completion_tokens"] == ours["usage"]["completion_tokens"]


def test_a_stream_is_the_whole_and_stop_strings_end_it(servers):
    whole = ask(servers[1], "/v1/completions", **GREEDY)["choices"][0]["text"]
    client = openai.OpenAI(base_url=f"{servers[1]}/v1", api_key="none")
    stream = client.completions.create(model="tiny", stream=True, **GREEDY)
    assert "".join(part.choices[0].text for part in stream) == whole
    stop = whole[3:5]
    cut = ask(servers[1], "/v1/completions", **GREEDY, stop=stop)["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (whole[: whole.find(stop)], "stop")


def test_samples_of_a_seed_come_again_and_differ_among_themselves(servers):
    body = {**GREEDY, "temperature": 1.0, "n": 3, "seed": 5, "ignore_eos": True}
    first, again = (ask(servers[1], "/v1/completions", **body) for _ in range(2))
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in again["choices"]]
    assert len(set(texts)) == 3


def test_scores_and_labels_are_those_of_our_engine(servers):
    body = {"text_1": "The list", "text_2": [" returns its", " naïve"]}
    ours, theirs = (ask(url, "/v1/score", **body)["data"] for url in servers)
    assert [one["score"] for one in theirs] == pytest.approx(
        [one["score"] for one in ours], abs=1e-3
    )
    body = {"input": "The list", "labels": ["returns", "items"], "template": "{input} [MASK]"}
    ours, theirs = (ask(url, "/v1/classify", **body)["data"][0]["probs"] for url in servers)
    assert theirs == pytest.approx(ours, abs=1e-3)


def test_chats_answer_and_forms_are_kept(servers):
    messages = [{"role": "user", "content": "Which list?"}]
    ours, theirs = (
        ask(url, "/v1/chat/completions", messages=messages, temperature=0, max_tokens=12)
        for url in servers
    )
    assert theirs["choices"][0]["message"] == ours["choices"][0]["message"]
    held = ask(servers[1], "/v1/completions", **GREEDY, structured_outputs={"regex": "[0-9]{3}"})
    assert held["choices"][0]["text"].isdigit()
    assert len(held["choices"][0]["text"]) == 3


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/infill", {"input": "The [MASK] returns"}, "blanks"),
        ("/v1/embeddings", {"input": "The list"}, "model"),
        ("/v1/completions", {"prompt": "a", "use_beam_search": True, "n": 2}, "use_beam_search"),
    ],
)
def test_what_it_cannot_is_said_by_name(servers, path, body, param):
    reply = httpx.post(f"{servers[1]}{path}", json=body, timeout=60)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert "vLLM" in reply.json()["error"]["message"]
