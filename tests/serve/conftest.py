import asyncio
import threading

import httpx
import openai
import pytest
import torch
import uvicorn

from glm_dist.inference import Engine, EngineLimits
from glm_dist.model import ModelSettings, build_model
from glm_dist.serve.app import build_app
from glm_dist.serve.endpoints import Endpoints
from glm_dist.serve.engine_thread import EngineThread
from glm_dist.serve.keys import ApiKeys
from glm_dist.serve.limits import RequestLimits
from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

TEXTS = ["The list returns its items in order.\n", "大學之道，在明明德。🦊", "naïve façade"] * 40


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(TEXTS, TokenizerSettings(vocab_size=400))


@pytest.fixture(scope="session")
def model(tokenizer):
    torch.set_num_threads(1)
    settings = ModelSettings(
        preset=None,
        num_layers=2,
        hidden_size=32,
        num_heads=2,
        ffn_hidden_size=64,
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=256,
        init_std=0.2,
    )
    return build_model(settings).eval()


class Server:
    """The application under uvicorn, in a thread of this process."""

    def __init__(
        self,
        model,
        tokenizer,
        keys=None,
        limits=None,
        engine_limits=None,
        template=None,
        task=None,
    ):
        limits = limits or RequestLimits()
        self.engine = EngineThread(Engine(model, tokenizer, engine_limits or EngineLimits()))
        endpoints = Endpoints(
            "tiny/glm", self.engine, tokenizer, model.settings, limits, template, task
        )
        app = build_app(endpoints, keys or ApiKeys(None), limits)
        config = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=asyncio.run, args=(self._server.serve(),))
        self._thread.start()
        while not self._server.started:
            pass
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def close(self):
        self._server.should_exit = True
        self._thread.join()
        self.engine.close()
        self.http.close()


@pytest.fixture(scope="session")
def serve(model, tokenizer):
    servers = []

    def start(**options):
        servers.append(Server(**{"model": model, "tokenizer": tokenizer, **options}))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def server(serve):
    return serve()
