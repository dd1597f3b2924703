"""A served model that tests disturb, and clients that count what they get; for all jobs' tests."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import torch
from safetensors.torch import save_file
from victims import title

from glm_dist.inference import Blank, Engine, Request, SamplingSettings, load_model
from glm_dist.model import ModelSettings, build_model
from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

ROOT = Path(__file__).parents[2]
TEXTS = ["The list returns its items in order.\n", "naïve façade"] * 40
START_SECONDS = 240
BLOCKS = 2048
"""Of an engine's cache, as it is by default."""
TITLES = {
    "engine": "ServeReplica:glm:engine",
    "front": "ServeReplica:glm:front",
    "controller": "ServeController",
    "proxy": "ProxyActor",
}


def write_model(folder, seed=0, **changes):
    """A tiny model of random weights."""
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer(TEXTS, TokenizerSettings(vocab_size=300))
    tokenizer.save(folder)
    shape = {"num_layers": 2, "hidden_size": 64, "num_heads": 2, "init_std": 0.2, **changes}
    settings = ModelSettings(
        preset=None, vocab_size=tokenizer.vocab_size, max_position_embeddings=1024, **shape
    )
    rng = torch.Generator().manual_seed(seed)
    weights = {
        name: weight + 0.05 * torch.randn(weight.shape, generator=rng)
        for name, weight in build_model(settings).state_dict().items()
    }
    save_file(weights, folder / "model.safetensors")
    config = {"model": settings.model_dump(mode="json"), "name": folder.name}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Oracle:
    """What an engine that nobody disturbs answers, by seed."""

    def __init__(self, folder, prompt, max_tokens):
        model, tokenizer = load_model(folder)
        torch.set_num_threads(1)
        self._engine, self._tokenizer = Engine(model, tokenizer), tokenizer
        self._prompt, self._max_tokens = prompt, max_tokens
        self._known = {}

    @property
    def body(self):
        """What is asked, but for the seed."""
        return {
            "prompt": self._prompt,
            "max_tokens": self._max_tokens,
            "temperature": 1,
            "ignore_eos": True,
        }

    def __call__(self, seed):
        if seed not in self._known:
            special = self._tokenizer.special
            tokens = [special.enc, *self._tokenizer.encode(self._prompt).tolist(), special.gmask]
            sampling = SamplingSettings(
                max_tokens=self._max_tokens, temperature=1, ignore_eos=True, seed=seed
            )
            request = Request("oracle", tokens, [Blank(len(tokens) - 1, sampling)])
            self._known[seed] = "".join(each.text for each in self._engine.generate([request]))
        return self._known[seed]


class Served:
    """`jobs/serve.py` until it is ended."""

    def __init__(self, home, *arguments, environment=None):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.job = subprocess.Popen(
            [sys.executable, "jobs/serve.py", f"port={self.port}", *arguments],
            cwd=ROOT,
            env={**os.environ, "GLM_DIST_HOME": str(home), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = []
        for line in self.job.stdout:
            self.said.append(line)
            if line.startswith("next"):
                break
        else:
            raise AssertionError("".join(self.said))
        self.seen = set(psutil.Process(self.job.pid).children(recursive=True))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.job.poll() is None:
            self.stop()

    def processes(self, kind):
        """Of this application's own tree."""
        children = psutil.Process(self.job.pid).children(recursive=True)
        self.seen.update(children)
        return [child for child in children if TITLES[kind] in title(child)]

    def signal(self, kind, number=signal.SIGKILL):
        """To one of them; the process."""
        victim = self.processes(kind)[0]
        victim.send_signal(number)
        return victim

    def wait_for(self, condition, seconds=START_SECONDS):
        """How long it took."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < seconds
            assert self.job.poll() is None, self.job.stdout.read()
            time.sleep(0.05)
        return time.monotonic() - start

    def ready(self):
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def gauge(self, name):
        """Of all models together."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        return sum(
            float(value) for value in re.findall(rf"^{name}(?:_total)?{{.*}} (\S+)$", text, re.M)
        )

    def stop(self, seconds=90):
        """End it, and see that nothing is left; its exit code and what it said last."""
        self.seen.update(psutil.Process(self.job.pid).children(recursive=True))
        self.job.send_signal(signal.SIGTERM)
        rest = self.job.stdout.read()
        code = self.job.wait(seconds)
        assert not psutil.wait_procs(self.seen, timeout=60)[1]
        return code, rest


class Deployed:
    """A cluster of this machine, and what is deployed on it."""

    def __init__(self, home, cluster):
        self.home, self.cluster, self.port = home, cluster, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = home / "serve.yaml"

    def deploy(self, *arguments):
        """Write the config by the job, and deploy it as a user would."""
        command = ["jobs/serve.py", *arguments, f"port={self.port}"]
        self._run([sys.executable, *command, "--write-config", str(self.config)])
        self._run([*self._serve, "deploy", str(self.config), "--address", self._address])

    def status(self):
        """Of the application, and what is said of it."""
        return self._run([*self._serve, "status", "--address", self._address])

    def answers(self):
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def text(self, oracle, seed):
        body = {**oracle.body, "seed": seed}
        reply = httpx.post(f"{self.url}/v1/completions", json=body, timeout=60)
        return reply.json()["choices"][0]["text"]

    def wait_for(self, condition):
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < START_SECONDS, self.status()
            time.sleep(0.2)
        return time.monotonic() - start

    _serve = (sys.executable, "-m", "ray.serve.scripts")

    @property
    def _address(self):
        return self.cluster.environment["RAY_ADDRESS"]

    def _run(self, command):
        environment = {
            **self.cluster.environment,
            "GLM_DIST_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@dataclass
class Outcome:
    """Of one request."""

    seed: int
    start: float
    status: int = 0
    text: str = ""
    is_whole: bool = False
    """Whether it came to its proper end."""
    error: str = ""
    first: float | None = None
    seconds: float = 0.0


@dataclass
class Load:
    """Requests at a steady rate, each by its own seed, whether or not those before have ended."""

    url: str
    body: dict
    stream: bool = False
    timeout: float = 120
    outcomes: list[Outcome] = field(default_factory=list)

    async def run(self, per_second, seconds=None, until=None, count=None):
        """Ask for so long, so often, or until an event; return when all is answered."""
        tasks = []
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
        async with httpx.AsyncClient(
            base_url=self.url, timeout=self.timeout, limits=limits
        ) as http:
            start = time.monotonic()
            while (
                (until is None or not until.is_set())
                and (seconds is None or time.monotonic() - start < seconds)
                and (count is None or len(tasks) < count)
            ):
                tasks.append(asyncio.create_task(self._ask(http, len(tasks))))
                await asyncio.sleep(max(0, start + len(tasks) / per_second - time.monotonic()))
            await asyncio.gather(*tasks)
        return self.outcomes

    async def _ask(self, http, seed):
        outcome = Outcome(seed, time.monotonic())
        self.outcomes.append(outcome)
        body = {**self.body, "seed": seed, "stream": self.stream}
        try:
            if self.stream:
                await self._read(http, body, outcome)
            else:
                reply = await http.post("/v1/completions", json=body)
                outcome.status = reply.status_code
                if reply.status_code == 200:
                    outcome.text, outcome.is_whole = reply.json()["choices"][0]["text"], True
                else:
                    outcome.error = reply.text[:300]
        except httpx.HTTPError as error:
            outcome.error = f"{type(error).__name__}: {error}"
        outcome.seconds = time.monotonic() - outcome.start
        return outcome

    async def _read(self, http, body, outcome):
        async with http.stream("POST", "/v1/completions", json=body) as reply:
            outcome.status = reply.status_code
            async for line in lines_of(reply):
                if line == "data: [DONE]":
                    outcome.is_whole = not outcome.error
                elif line.startswith("data: "):
                    outcome.first = outcome.first or time.monotonic()
                    event = json.loads(line[6:])
                    outcome.error = json.dumps(event["error"]) if "error" in event else ""
                    if not outcome.error:
                        outcome.text += event["choices"][0]["text"]
                elif line:
                    outcome.error += line[:300]


async def lines_of(reply):
    """Lines as server-sent events have them; httpx would cut at U+0085 and U+2028, too."""
    rest = b""
    async for part in reply.aiter_bytes():
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line.decode()


def wait_for_engines(served, count):
    """Until fronts know so many that answer; how long it took."""

    def are_there():
        try:
            return served.gauge("glm_free_blocks") > (count - 0.5) * BLOCKS
        except (httpx.HTTPError, ValueError):
            return False

    return served.wait_for(are_there)
