"""The job: a model behind Ray Serve, asked by OpenAI's client, ended by SIGTERM."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from safetensors.torch import save_file

from glm_dist.model import ModelSettings, build_model
from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    folder = home / "models" / "tiny"
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer(["The list returns its items.\n"] * 50, TokenizerSettings())
    tokenizer.save(folder)
    settings = ModelSettings(
        preset=None, num_layers=1, hidden_size=32, num_heads=2, vocab_size=tokenizer.vocab_size
    )
    save_file(build_model(settings).state_dict(), folder / "model.safetensors")
    config = {"model": settings.model_dump(mode="json"), "name": "tiny"}
    (folder / "config.json").write_text(json.dumps(config))
    return home


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(home, *arguments):
    return subprocess.Popen(
        [sys.executable, "jobs/serve.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "GLM_DIST_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextlib.contextmanager
def ended(job):
    """Whatever a test finds, its server does not outlive it."""
    try:
        yield
    finally:
        job.terminate()
        job.wait(60)


@pytest.mark.ray
@pytest.mark.parametrize("flags", [[], ["proxy=haproxy"], ["--without-ray"]])
def test_a_model_is_served_until_sigterm(home, flags):
    port, by_haproxy = free_port(), "proxy=haproxy" in flags
    job = start(home, "model=models/tiny", f"port={port}", "limits.header_seconds=2", *flags)
    with ended(job):
        lines = []
        for line in job.stdout:
            lines.append(line)
            if line.startswith("next"):
                break
        assert re.match(rf"serving +tiny at http://127.0.0.1:{port}/v1", lines[-2])
        children = psutil.Process(job.pid).children(recursive=True)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        reply = client.completions.create(model="tiny", prompt="The list", max_tokens=4)
        assert reply.usage.completion_tokens <= 4
        parts = client.completions.create(
            model="tiny", prompt="The list", max_tokens=4, stream=True
        )
        assert list(parts)[-1].choices[0].finish_reason
        url = f"http://127.0.0.1:{port}/v1/models"
        assert len(httpx.get(url).headers.get_list("x-request-id")) == 1
        with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
            slow.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n")
            told = b"".join(iter(lambda: slow.recv(4096), b""))  # until hung up on
            assert told.partition(b"\r\n")[0] == (
                b"HTTP/1.1 408 Request Time-out" if by_haproxy else b""
            )
        job.send_signal(signal.SIGTERM)
        assert statuses(url) <= ({200, 500, 503} if by_haproxy else {200, 503})
        rest = job.stdout.read()
        assert job.wait(60) == 0, rest
        assert "Traceback" not in "".join([*lines, rest])
    assert not psutil.wait_procs(children, timeout=60)[1]


def statuses(url):
    """What is answered until nobody listens any more."""
    found = set()
    while True:
        try:
            found.add(httpx.get(url, timeout=30).status_code)
        except httpx.TransportError:
            return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=models/none"], "cannot be read"),
        (["model=models/tiny", "host=0.0.0.0"], "without api_keys"),
        (["model=models/tiny", "prot=1"], "did you mean 'port'"),
        (["model=models/tiny", "engine.cache_tokens=1000000000000"], "no precision fits"),
        (["model=models/tiny", "num_replicas=100000000"], "start fewer, or lower cache_tokens"),
    ],
)
def test_mistakes_are_said_in_a_sentence(home, arguments, message):
    job = start(home, *arguments)
    output = job.stdout.read()
    assert job.wait() == 2
    assert message in output
    assert "Traceback" not in output


def test_haproxy_is_refused_where_a_ray_runs_whose_environment_decides(home, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        job = start(home, "model=models/tiny", "proxy=haproxy")
        output = job.stdout.read()
    assert job.wait() == 2
    assert f"the Ray at {address} runs already" in output
    assert "Traceback" not in output
