"""Adapters beside one model: each answers as if it were merged, whatever its neighbours ask for."""

import dataclasses

import numpy as np
import pytest
import torch
from adapters import save_base, save_random

from glm_dist.errors import ModelError, RequestError
from glm_dist.inference import (
    EmbedRequest,
    Engine,
    EngineLimits,
    SamplingSettings,
    ScoreRequest,
    load_model,
    open_engine,
)
from glm_dist.model.tuning_settings import TuningSettings

TUNINGS = {
    "polite": TuningSettings(kind="lora", rank=4),
    "brief": TuningSettings(kind="lora", rank=2, alpha=8, targets=["query_key_value"]),
    "rude": TuningSettings(kind="dora", rank=3, targets=["*.attention.*", "dense_4h_to_h"]),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_model, tokenizer):
    """Of a base model by family, and of the adapters beside it."""
    known = {}

    def find(family):
        if family not in known:
            root, model = tmp_path_factory.mktemp(family), make_model(family)
            base = save_base(root / "base", model, tokenizer)
            for name, tuning in TUNINGS.items():
                save_random(root / name, base, model, tuning, tokenizer)
            known[family] = base, {name: root / name for name in TUNINGS}
        return known[family]

    return find


@pytest.fixture
def some_requests(random_requests):
    def make(seed, count, names=(None, *TUNINGS)):
        requests = random_requests(np.random.default_rng(seed), count)
        return [
            dataclasses.replace(request, adapter=names[number % len(names)])
            for number, request in enumerate(requests)
        ]

    return make


def test_each_adapter_answers_as_the_model_it_is_merged_into(
    family, folders, tokenizer, make_request, collect
):
    base, adapters = folders(family)
    engine = open_engine(base, adapters=adapters)
    assert engine.adapters == tuple(TUNINGS)
    sampling = SamplingSettings(max_tokens=8, num_logprobs=0, ignore_eos=True)
    request = make_request("the list [MASK] of items [MASK]", sampling=sampling)
    answers = {}
    for name in (None, *TUNINGS):
        merged = Engine(*load_model(adapters[name] if name else base))
        expected = collect(merged.generate([request]))
        found = collect(engine.generate([dataclasses.replace(request, adapter=name)]))
        for key, (tokens, logprobs, *_) in expected.items():
            assert found[key][0] == tokens
            torch.testing.assert_close(found[key][1], logprobs, rtol=1e-3, atol=1e-3)
        answers[name] = found
    assert len({str(answer) for answer in answers.values()}) == 4


@pytest.mark.parametrize("some", ["ours", "glm_4"])
def test_answers_are_bitwise_those_without_neighbours_of_other_adapters(
    some, folders, some_requests, collect
):
    base, adapters = folders(some)
    requests, rng = some_requests(1, 12), np.random.default_rng(2)
    engine = open_engine(base, adapters=adapters)
    expected = {}
    for request in requests:
        expected |= collect(engine.generate([request]))
    for _ in range(5):
        limits = EngineLimits(
            max_running=int(rng.integers(2, 12)), cache_tokens=int(rng.choice([288, 400]))
        )
        chosen = [requests[i] for i in rng.permutation(12)[: rng.integers(3, 13)]]
        tight = open_engine(base, limits, adapters=adapters)
        answers = collect(tight.generate(chosen))
        ids = {request.id for request in chosen}
        assert answers == {key: value for key, value in expected.items() if key[0] in ids}


def test_adapters_share_no_keys_and_values_of_equal_prompts(folders, make_request):
    base, adapters = folders("glm_4")
    engine = open_engine(base, adapters=adapters)
    request = make_request("the list returns a number of items")
    for name in (None, *TUNINGS):
        engine.generate([dataclasses.replace(request, adapter=name)])
        assert engine.stats.cached_tokens == 0
    engine.generate([dataclasses.replace(request, adapter="rude")])
    assert engine.stats.cached_tokens == len(request.tokens)


def test_scores_and_embeddings_are_those_of_the_adapter_too(folders, make_request):
    base, adapters = folders("ours")
    engine = open_engine(base, adapters=adapters)
    prompt = make_request("a [MASK] of items")
    score = ScoreRequest("s", prompt.tokens, prompt.blanks[0].place, [[40, 41]])
    embed = EmbedRequest("e", prompt.tokens)
    for name in TUNINGS:
        merged = Engine(*load_model(adapters[name]))
        for request, values in (
            (score, lambda found: found.options[0].logprobs),
            (embed, lambda found: found.vector),
        ):
            [found] = engine.generate([dataclasses.replace(request, adapter=name)])
            [expected] = merged.generate([request])
            torch.testing.assert_close(
                torch.tensor(values(found)), torch.tensor(values(expected)), rtol=1e-3, atol=1e-3
            )


def test_an_unknown_adapter_is_refused_by_name(folders, make_request):
    base, adapters = folders("glm_4")
    for known in ({}, adapters):
        engine = open_engine(base, adapters=known)
        with pytest.raises(RequestError, match="'kind' is not loaded") as error:
            engine.add(make_request("the list", adapter="kind"))
        assert (error.value.param, error.value.code) == ("adapter", "model_not_found")
        assert not known or "polite, brief, rude" in str(error.value)


def test_what_cannot_stand_beside_the_model_is_refused_by_name(
    tmp_path, folders, make_model, tokenizer
):
    base, adapters = folders("glm_4")
    other = save_base(tmp_path / "other", make_model("glm_4", init_seed=9), tokenizer)
    with pytest.raises(ModelError, match=r"polite .* other weights.* rude .* other weights"):
        open_engine(other, adapters=adapters)
