"""What a request gets does not depend on what else the engine does, to the last bit."""

import dataclasses

import numpy as np
import pytest
import torch

from glm_dist.inference import Engine, EngineLimits
from glm_dist.inference.sequences import Generated

NUM_BATCHES = 6
"""Of each family in the fast tier."""
SLOW_BATCHES = 75
"""Of each family and seed in the slow one: a thousand together."""
NUM_REQUESTS = 16


def run(engine, requests, rng):
    """Outputs, where requests come in at random steps."""
    outputs, waiting = [], list(requests)
    while waiting or engine.has_work:
        while waiting and (not engine.has_work or rng.random() < 0.4):
            engine.add(waiting.pop(0))
        outputs += engine.step()
    return outputs


def tight_limits(rng, **changes):
    """Sizes at which prompts are cut, answers preempted and tiles half filled."""
    return EngineLimits(
        max_running=int(rng.integers(2, 24)),
        cache_tokens=int(rng.choice([224, 288, 400])),
        prefill_tokens=int(rng.choice([64, 128, 512])),
        shares_prompts=bool(rng.random() < 0.7),
        **changes,
    )


def alone(model, tokenizer, request, collect, **changes):
    return collect(Engine(model, tokenizer, EngineLimits(**changes)).generate([request]))


@pytest.fixture
def replayed(monkeypatch):
    """Tokens of answers that lost their blocks when they had some already."""
    counts, forget = [], Generated.forget

    def count(answer):
        counts.append(answer.num_computed)
        forget(answer)

    monkeypatch.setattr(Generated, "forget", count)
    return counts


def check_batches(model, tokenizer, random_requests, collect, num_batches, seed, **changes):
    rng = np.random.default_rng(seed)
    requests = random_requests(rng, NUM_REQUESTS, longest=100, max_tokens=20)
    expected = {}
    for request in requests:
        expected |= alone(model, tokenizer, request, collect, **changes)
    for _ in range(num_batches):
        chosen = [
            requests[i] for i in rng.permutation(NUM_REQUESTS)[: rng.integers(3, NUM_REQUESTS)]
        ]
        engine = Engine(model, tokenizer, tight_limits(rng, **changes))
        answers = collect(run(engine, chosen, rng))
        ids = {request.id for request in chosen}
        assert answers == {key: value for key, value in expected.items() if key[0] in ids}
        assert engine.stats.free_blocks == engine.stats.total_blocks


def test_answers_are_bitwise_those_of_the_request_alone(
    family, tokenizer, make_model, random_requests, collect, replayed
):
    model = make_model(family)
    check_batches(model, tokenizer, random_requests, collect, NUM_BATCHES, seed=1)
    assert sum(replayed) > 20


def test_two_rows_that_round_alike_by_chance_are_not_taken_for_a_size(
    tokenizer, make_model, random_requests, collect
):
    """What a branch adds is small beside a residual that is scaled up, and hides how it rounds."""
    model = make_model("chatglm", num_layers=3, hidden_size=48, ffn_hidden_size=100)
    check_batches(model, tokenizer, random_requests, collect, NUM_BATCHES, seed=2)


@pytest.mark.slow
def test_answers_are_bitwise_the_same_on_two_threads_too(
    tokenizer, make_model, random_requests, collect
):
    torch.set_num_threads(2)
    model = make_model("ours", hidden_size=64, ffn_hidden_size=352)
    check_batches(model, tokenizer, random_requests, collect, 3, seed=4)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("some", ["ours", "glm_4"])
def test_answers_are_bitwise_alike_in_every_precision(
    some, dtype, tokenizer, make_model, random_requests, collect, replayed
):
    model = make_model(some)
    check_batches(model, tokenizer, random_requests, collect, 3, seed=11, dtype=dtype)
    assert sum(replayed) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_many_batches_give_bitwise_the_same_answers(
    family, seed, tokenizer, make_model, random_requests, collect
):
    model = make_model(family, num_layers=3, hidden_size=48, ffn_hidden_size=100)
    check_batches(model, tokenizer, random_requests, collect, SLOW_BATCHES, seed)


def test_equal_requests_get_equal_answers_whether_their_prompt_was_cached(
    family, tokenizer, make_model, random_requests, collect
):
    model = make_model(family)
    engine = Engine(model, tokenizer)
    requests = random_requests(np.random.default_rng(5), 6, longest=200)
    first = collect(engine.generate(requests))
    assert engine.stats.cached_tokens == 0 or any(r.num_samples > 1 for r in requests)
    before = engine.stats.cached_tokens
    again = collect(engine.generate(requests))
    assert again == first
    assert engine.stats.cached_tokens - before == sum(len(r.tokens) for r in requests)


def test_a_causal_prompt_shares_its_beginning_and_a_prefix_prompt_only_all_of_itself(
    tokenizer, make_model, random_requests, collect
):
    rng = np.random.default_rng(6)
    [request] = random_requests(rng, 1, longest=2)
    plain = [t for t in range(tokenizer.vocab_size) if t not in set(tokenizer.special_ids)]
    body = rng.choice(plain, size=211).tolist()
    for family, shared in (("glm_4", 192), ("rotary_2d", 0)):
        model = make_model(family)
        engine = Engine(model, tokenizer)
        requests = []
        for number, tail in enumerate(([25, 26], [29])):
            tokens = [tokenizer.special.enc, *body, *tail, tokenizer.special.gmask]
            blank = dataclasses.replace(request.blanks[0], place=len(tokens) - 1)
            requests.append(
                dataclasses.replace(
                    request, id=str(number), tokens=tokens, blanks=[blank], num_samples=1
                )
            )
        for cached, one in zip((0, shared, 215, 214), [*requests, *requests], strict=True):
            before = engine.stats.cached_tokens
            answers = collect(engine.generate([one]))
            assert answers == alone(model, tokenizer, one, collect)
            assert engine.stats.cached_tokens - before == cached


def test_salts_keep_prompts_apart(tokenizer, make_model, random_requests):
    [request] = random_requests(np.random.default_rng(7), 1)
    request = dataclasses.replace(request, num_samples=1, is_joint=True)
    engine = Engine(make_model("glm_4"), tokenizer)
    for salt, cached in (("one", 0), ("two", 0), ("two", len(request.tokens))):
        before = engine.stats.cached_tokens
        engine.generate([dataclasses.replace(request, cache_salt=salt)])
        assert engine.stats.cached_tokens - before == cached
