"""Adapters beside a served model, each asked by its name."""

import asyncio

import httpx
import pytest
from adapters import save_base, save_random

from glm_dist.errors import ConfigError
from glm_dist.inference import Blank, Request, SamplingSettings
from glm_dist.model.tuning_settings import TuningSettings
from glm_dist.serve.app import build_app
from glm_dist.serve.keys import ApiKeys
from glm_dist.serve.limits import RequestLimits
from glm_dist.serve.link import Address, EngineServer
from glm_dist.serve.opening import check_models, describe, open_engine
from glm_dist.serve.remote import RemoteEngines
from glm_dist.serve.settings import HostedModel, ServeSettings

NAMES = ("polite", "brief")
BODY = {"prompt": "The list", "max_tokens": 8, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model, tokenizer):
    root = tmp_path_factory.mktemp("adapters")
    base = save_base(root / "base", model, tokenizer)
    for rank, name in enumerate(NAMES, start=2):
        tuning = TuningSettings(kind="lora", rank=rank)
        save_random(root / name, base, model, tuning, tokenizer)
    return root


@pytest.fixture(scope="module")
def hosted(folders):
    adapters = {name: str(folders / name) for name in NAMES}
    return HostedModel(model=str(folders / "base"), adapters=adapters)


def ask(hosted, *requests):
    """The replies of an application with this model, all asked at once."""
    engine, limits = open_engine(hosted), RequestLimits()
    app = build_app(describe(hosted).endpoints(engine, limits), ApiKeys(None), limits)

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await asyncio.gather(
                *(http.request(*request[:2], **request[2]) for request in requests)
            )

    try:
        return [reply.json() for reply in asyncio.run(run())]
    finally:
        engine.close()


def completion(name=None):
    return "POST", "/v1/completions", {"json": {**BODY, "model": name} if name else BODY}


def text(reply):
    return reply["choices"][0]["text"]


def test_a_request_is_answered_by_the_adapter_it_names(folders, hosted):
    names = ("base", *NAMES)
    *replies, unnamed = ask(hosted, *map(completion, names), completion())
    for name, reply in zip(names, replies, strict=True):
        [merged] = ask(HostedModel(model=str(folders / name)), completion())
        assert reply["model"] == name
        assert text(reply) == text(merged)
    assert len(set(map(text, replies))) == 3
    assert text(unnamed) == text(replies[0])


def test_adapters_are_listed_beside_their_model(hosted):
    [listed] = ask(hosted, ("GET", "/v1/models", {}))
    found = {entry["id"]: entry["parent"] for entry in listed["data"]}
    assert found == {"base": None, "polite": "base", "brief": "base"}


def test_a_name_stands_for_one_model_or_adapter_and_an_adapter_is_one(folders):
    base = {"model": str(folders / "base")}
    taken = ServeSettings(**base, adapters={"base": str(folders / "polite")})
    with pytest.raises(ConfigError, match="base stands for more than one"):
        check_models(taken)
    with pytest.raises(ConfigError, match="adapters.polite: .* is no adapter"):
        check_models(ServeSettings(**base, adapters={"polite": str(folders / "base")}))


def test_all_that_is_wrong_with_models_is_said_at_once(folders):
    base, none = str(folders / "base"), str(folders / "none")
    more = [
        {"model": none},
        {"model": base, "adapters": {"brief": base, "base": str(folders / "polite")}},
    ]
    with pytest.raises(ConfigError) as error:
        check_models(ServeSettings(model=str(folders / "other"), models=more))
    starts = ("model: ", "models.0.model: ", "models.1.adapters.brief: ", "models: base stands")
    assert len(error.value.problems) == len(starts)
    for problem, start in zip(error.value.problems, starts, strict=True):
        assert problem.startswith(start)


def test_a_front_asks_only_engines_that_have_the_adapter(hosted, tokenizer):
    special = tokenizer.special
    tokens, sampling = [special.enc, special.gmask], SamplingSettings(max_tokens=2, ignore_eos=True)

    async def run():
        pool = RemoteEngines("kind", is_causal=False)
        sites = []
        for each in (hosted.model_copy(update={"adapters": {}}), hosted):
            engine = open_engine(each)
            server = EngineServer(engine, lambda: None)
            port, secret = await server.open("127.0.0.1")
            sites.append((engine, server))
            names = engine.engine.adapters
            pool.connect([Address(f"{port}", "127.0.0.1", port, secret, "kind", "w", names)])
        while len([link for link in pool.links if link.vitals]) < 2:
            await asyncio.sleep(0.01)
        for number in range(8):
            request = Request(f"{number}", [*tokens], [Blank(1, sampling)], adapter="brief")
            stream = await pool.submit(request)
            assert [output async for output in stream.outputs()]
        given = [engine.stats.generated_tokens for engine, _ in sites]
        pool.close()
        for engine, server in sites:
            await server.close()
            engine.close()
        return given

    assert asyncio.run(run()) == [0, 16]
