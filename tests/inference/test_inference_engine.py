import dataclasses
import pickle

import numpy as np
import pytest
import torch

from glm_dist.errors import RequestError
from glm_dist.inference import (
    Blank,
    Delta,
    EmbedRequest,
    Engine,
    EngineLimits,
    Failure,
    Request,
    SamplingSettings,
    ScoreRequest,
    Usage,
)
from glm_dist.inference.edits import _penalise_repetition
from glm_dist.model import Batch

TEXTS = [
    "the list returns",
    "a [MASK] of items is [MASK] in the [MASK]",
    "[MASK] value [sMASK]",
    "the " + "list returns a number of items when " * 5 + "[gMASK]",
]


def test_greedy_answers_are_those_of_the_uncached_forward(
    family, tokenizer, make_model, make_request, uncached, collect
):
    model = make_model(family)
    sampling = SamplingSettings(max_tokens=12, num_logprobs=0)
    requests = [make_request(text, str(i), sampling) for i, text in enumerate(TEXTS)]
    answers = collect(Engine(model, tokenizer).generate(requests))
    for request in requests:
        for blank, (tokens, logprobs) in enumerate(uncached(model, request)):
            got = answers[request.id, 0, blank]
            assert got[0] == tokens
            torch.testing.assert_close(got[1], logprobs, rtol=1e-4, atol=1e-4)


def option_rows(model, tokenizer, request):
    """Each option as a training sample, all of them packed into one row."""
    special = tokenizer.special
    fields = {name: [] for name in Batch._fields}
    for number, option in enumerate(request.options, start=1):
        fed, targets = [special.sop, *option], [*option, special.eop]
        start, count = len(fields["tokens"]), len(request.tokens)
        fields["tokens"] += [*request.tokens, *fed]
        fields["targets"] += [0] * count + targets
        fields["position_ids"] += [*range(count), *[request.place] * len(fed)]
        fields["block_position_ids"] += [0] * count + list(range(1, len(fed) + 1))
        fields["segment_ids"] += [number] * (count + len(fed))
        fields["prefix_ends"] += [start + count] * (count + len(fed))
        fields["loss_mask"] += [0] * count + [1] * len(fed)
    return Batch(*(torch.tensor([fields[name]]) for name in Batch._fields))


@pytest.fixture
def score_request(make_request, tokenizer):
    request = make_request("a number of [MASK] when the [MASK] is")
    options = [tokenizer.encode(text).tolist() for text in ("items", "the list", " a range " * 8)]
    return ScoreRequest("s", request.tokens, request.blanks[1].place, options, num_logprobs=2)


def test_scores_are_those_of_the_packed_training_forward(
    family, tokenizer, make_model, score_request
):
    model = make_model(family)
    [scores] = Engine(model, tokenizer).generate([score_request])
    with torch.no_grad():
        batch = option_rows(model, tokenizer, score_request)
        losses = model(*batch).token_losses[batch.loss_mask.bool()]
    got = [logprob for option in scores.options for logprob in option.logprobs]
    torch.testing.assert_close(torch.tensor(got), -losses, rtol=1e-4, atol=1e-4)
    assert [len(option.alternatives) for option in scores.options] == [
        len(option) + 1 for option in score_request.options
    ]


def test_what_was_generated_scores_bitwise_as_it_was_generated(
    family, tokenizer, make_model, make_request
):
    model = make_model(family)
    sampling = SamplingSettings(max_tokens=40, temperature=1.0, num_logprobs=0, ignore_eos=True)
    request = make_request("the list [MASK] of items", sampling=sampling)
    deltas = Engine(model, tokenizer).generate([request])
    tokens = [token for delta in deltas for token in delta.tokens]
    given = ScoreRequest("s", request.tokens, request.blanks[0].place, [tokens], scores_end=False)
    [scores] = Engine(model, tokenizer).generate([given])
    assert scores.options[0].logprobs == tuple(each for d in deltas for each in d.logprobs)
    # Not ignore_eos: where the end is likeliest, the next best token is not the greedy one.
    greedy = make_request("the list [MASK] of items", sampling=SamplingSettings())
    tokens = [t for delta in Engine(model, tokenizer).generate([greedy]) for t in delta.tokens]
    given = dataclasses.replace(given, options=[tokens, [*tokens, tokens[-1] ^ 1]])
    [scores] = Engine(model, tokenizer).generate([given])
    assert [option.is_greedy for option in scores.options] == [True, False]


def test_scores_and_embeddings_are_bitwise_the_same_beside_other_work(
    family, tokenizer, make_model, random_requests, score_request, make_request
):
    model = make_model(family)
    longer = make_request("the list returns a number [MASK]" * 9).tokens
    embed = EmbedRequest("e", longer)
    alone = {}
    for request in (score_request, embed):
        [alone[request.id]] = Engine(model, tokenizer).generate([request])
    rng = np.random.default_rng(3)
    for _ in range(4):
        limits = EngineLimits(cache_tokens=640, prefill_tokens=int(rng.choice([64, 128, 512])))
        engine = Engine(model, tokenizer, limits)
        requests = [*random_requests(rng, 8), score_request, embed]
        outputs = engine.generate(requests[i] for i in rng.permutation(10))
        found = {each.request_id: each for each in outputs if not isinstance(each, Delta)}
        assert found == alone


def test_an_embedding_is_the_mean_of_the_final_hidden_states(family, tokenizer, make_model):
    model = make_model(family)
    for count in (5, 64, 150):
        tokens = np.random.default_rng(count).integers(20, 300, size=count)
        [embedding] = Engine(model, tokenizer).generate([EmbedRequest("e", tokens.tolist())])
        mask = torch.ones(1, 1, count, count, dtype=torch.bool)
        mask = mask.tril() if model.settings.causal else mask
        ids = torch.from_numpy(tokens)[None]
        with torch.no_grad():
            places = torch.arange(count)[None]
            hidden = model.hidden_states(ids, places, torch.zeros_like(ids), mask)
        expected = hidden[0].mean(dim=0)
        torch.testing.assert_close(torch.tensor(embedding.vector), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def ask(tokenizer, make_model, make_request, collect):
    """The answer (tokens, logprobs, text, alternatives, reasons) to one blank."""
    model = make_model("ours")

    def answer(text="the list [MASK] of items", **sampling):
        settings = SamplingSettings(**{"max_tokens": 20, **sampling})
        outputs = Engine(model, tokenizer).generate([make_request(text, sampling=settings)])
        assert [each.is_last for each in outputs] == [False] * (len(outputs) - 1) + [True]
        [found] = collect(outputs).values()
        return found

    return answer


def test_a_stop_string_cuts_the_text_and_ends_the_answer(ask):
    tokens, _, text, _, _ = ask(ignore_eos=True)
    stop = text[6:9]
    stopped = ask(ignore_eos=True, stop=("never here", stop))
    assert stopped[2] == text[: text.index(stop)]
    assert stopped[4] == [("stop", stop)]
    assert stopped[0] == tokens[: len(stopped[0])]
    assert len(stopped[0]) < len(tokens)


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(ask, tokenizer):
    tokens, *_ = ask(ignore_eos=True)
    first = tokens.index(tokens[5])
    stopped = ask(stop_tokens=(tokens[5],), logit_bias={tokenizer.special.eop: -100})
    assert stopped[0] == tokens[:first]
    assert stopped[4] == [("stop", tokens[5])]


def test_an_answer_has_as_many_tokens_as_asked_for(ask, tokenizer):
    tokens, _, _, _, reasons = ask(ignore_eos=True, max_tokens=33)
    assert (len(tokens), reasons) == (33, [("length", None)])
    end = {tokenizer.special.eop: 100.0}
    tokens, _, _, _, reasons = ask(logit_bias=end, min_tokens=7)
    assert (len(tokens), reasons) == (7, [("stop", None)])


def test_a_bias_forces_and_forbids_tokens(ask):
    first = ask(max_tokens=1, ignore_eos=True)[0][0]
    assert ask(max_tokens=1, ignore_eos=True, logit_bias={first: -100})[0] != [first]
    assert set(ask(logit_bias={40: 100}, max_tokens=5, ignore_eos=True)[0]) == {40}


def test_penalties_push_down_what_was_said(ask):
    strong = ask(ignore_eos=True, presence_penalty=2, frequency_penalty=2, max_tokens=60)[0]
    plain = ask(ignore_eos=True, max_tokens=60, logit_bias={50: 8})[0]
    pushed = ask(ignore_eos=True, max_tokens=60, logit_bias={50: 8}, frequency_penalty=2)[0]
    assert pushed.count(50) < plain.count(50)
    assert len(set(strong)) > len(set(ask(ignore_eos=True, max_tokens=60)[0]))


def test_a_repetition_penalty_counts_the_prompt_too(ask, tokenizer):
    token = int(tokenizer.encode("the")[0])
    assert ask(ignore_eos=True, max_tokens=1, logit_bias={token: 90})[0] == [token]
    scores = {token: 3.0, token + 1: 1.0}
    edited = torch.full((320,), -5.0)
    edited[list(scores)] = torch.tensor(list(scores.values()))
    group = type("Group", (), {"tokens": np.array([token])})
    sequence = type("Answer", (), {"group": group, "generated": [token + 2]})
    _penalise_repetition(sequence, 2.0, edited)
    assert edited[[token, token + 1, token + 2]].tolist() == [1.5, 1.0, -10.0]


def test_an_answer_is_one_of_the_choices(ask):
    choices = ("a range", "a", "items of the list")
    assert ask(choices=choices)[2] in choices
    drawn = {ask(choices=choices, temperature=5.0, seed=seed)[2] for seed in range(12)}
    assert drawn <= set(choices)
    assert len(drawn) > 1


def test_no_run_of_tokens_comes_twice(ask):
    for size in (1, 2, 3):
        tokens = ask(ignore_eos=True, max_tokens=60, no_repeat_ngram=size, temperature=0.3)[0]
        runs = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
        assert len(runs) == len(set(runs)) == 61 - size
        assert size > 1 or len(set(ask(ignore_eos=True, max_tokens=60)[0])) < 60


def test_an_answer_holds_no_bad_word_however_it_is_spelt(ask):
    text = ask(ignore_eos=True, max_tokens=40)[2]
    # What is no UTF-8 has no spelling that could be banned.
    words = {word for word in text.split("\ufffd") if word}
    cleaned = ask(ignore_eos=True, max_tokens=40, bad_words=tuple(words))[2]
    assert not any(word in cleaned for word in words)
    assert len(cleaned) > 20


def test_only_allowed_tokens_are_taken(ask, tokenizer):
    allowed = (40, 41, 42)
    tokens, *_, reasons = ask(allowed_tokens=allowed, temperature=2.0)
    assert set(tokens) <= set(allowed)
    assert len(tokens) == 20
    assert reasons == [("length", None)]
    ending = ask(allowed_tokens=(*allowed, tokenizer.special.eop), temperature=2.0)
    assert ending[4] == [("stop", None)]


def test_samples_of_a_request_compute_their_prompt_once_and_differ(
    tokenizer, make_model, make_request, collect
):
    engine = Engine(make_model("rotary_2d"), tokenizer, EngineLimits(shares_prompts=False))
    computed, prefill = [], engine._runner.prefill
    engine._runner.prefill = lambda chunks: computed.extend(chunks) or prefill(chunks)
    sampling = SamplingSettings(temperature=1.5, seed=3, ignore_eos=True, max_tokens=9)
    request = make_request("a [MASK] of", sampling=sampling, num_samples=5)
    answers = collect(engine.generate([request]))
    assert len(computed) == 1
    assert len({tuple(answer[0]) for answer in answers.values()}) == 5
    one = dataclasses.replace(request, num_samples=2)
    fewer = collect(engine.generate([one]))
    assert fewer == {key: answers[key] for key in fewer}
    assert len(computed) == 2


def test_blanks_side_by_side_are_filled_as_if_each_were_the_only_one(
    family, tokenizer, make_model, make_request, collect
):
    model = make_model(family)
    request = make_request(TEXTS[1], is_joint=False)
    answers = collect(Engine(model, tokenizer).generate([request]))
    for number, blank in enumerate(request.blanks):
        single = dataclasses.replace(request, blanks=[blank])
        [expected] = collect(Engine(model, tokenizer).generate([single])).values()
        assert answers["a", 0, number] == expected


def test_a_cancelled_request_gives_its_blocks_back_and_touches_no_other(
    tokenizer, make_model, random_requests, collect
):
    model = make_model("ours")
    requests = random_requests(np.random.default_rng(8), 8)
    expected = collect(Engine(model, tokenizer).generate(requests[1:]))
    for steps in range(4):
        engine = Engine(model, tokenizer)
        for request in requests:
            engine.add(request)
        outputs = [output for _ in range(steps) for output in engine.step()]
        usage = engine.cancel(requests[0].id)
        assert usage is None or usage.prompt_tokens == len(requests[0].tokens)
        assert engine.cancel(requests[0].id) is None
        while engine.has_work:
            new = engine.step()
            assert all(each.request_id != requests[0].id for each in new)
            outputs += new
        others = collect([each for each in outputs if each.request_id != requests[0].id])
        assert others == expected
        assert engine.stats.free_blocks == engine.stats.total_blocks
        assert engine.stats.running == engine.stats.waiting == 0


@pytest.mark.parametrize("untied", ["glm_4", "chatglm"])
def test_a_request_that_breaks_the_numbers_fails_alone_and_leaves_nothing_behind(
    untied, tokenizer, make_model, random_requests, collect
):
    model, poison = make_model(untied), 300
    requests = [
        dataclasses.replace(each, tokens=[17 if t == poison else t for t in each.tokens])
        for each in random_requests(np.random.default_rng(9), 10)
    ]
    expected = collect(Engine(model, tokenizer).generate(requests))
    with torch.no_grad():
        model.word_embeddings.weight[poison] = torch.nan
    engine = Engine(model, tokenizer, EngineLimits(cache_tokens=640))
    bad = dataclasses.replace(requests[0], id="bad", tokens=[*requests[0].tokens, poison])
    outputs = engine.generate([requests[0], bad, *requests[1:], EmbedRequest("bad2", bad.tokens)])
    failed = [each.request_id for each in outputs if isinstance(each, Failure)]
    assert sorted(failed) == ["bad", "bad2"]
    assert collect(each for each in outputs if each.request_id not in failed) == expected


def test_smaller_priorities_go_first(tokenizer, make_model, make_request):
    engine = Engine(make_model("ours"), tokenizer, EngineLimits(max_running=1))
    for number, priority in enumerate((1, 0, 1, -1)):
        engine.add(make_request("the list", str(number), priority=priority))
    ended = []
    while engine.has_work:
        ended += [each.request_id for each in engine.step() if each.is_last]
    assert ended == ["3", "1", "0", "2"]


def test_usage_counts_what_was_generated_and_what_was_cached(tokenizer, make_model, make_request):
    engine = Engine(make_model("ours"), tokenizer)
    sampling = SamplingSettings(max_tokens=5, ignore_eos=True)
    request = make_request("a [MASK] b [MASK]", sampling=sampling)
    for cached in (0, len(request.tokens)):
        engine.generate([request])
        usage = engine.usage(request.id)
        assert usage == Usage(len(request.tokens), cached, 10)


@pytest.mark.parametrize(
    ("changes", "message", "param"),
    [
        ({"tokens": []}, "no tokens", "tokens"),
        ({"tokens": [3] * 300}, "300 tokens .* 256 positions", "tokens"),
        ({"tokens": [3, 9999, 6]}, "9999", "tokens"),
        ({"tokens": [3, -1, 6]}, "-1", "tokens"),
        ({"blanks": []}, "no blank", "blanks"),
        ({"blanks": [Blank(0)]}, "no mask at place 0", "blanks"),
        ({"num_samples": 0}, "at least one", "num_samples"),
        ({"blanks": [Blank(2, SamplingSettings(max_tokens=256))]}, "room for 255", "max_tokens"),
        ({"blanks": [Blank(2, SamplingSettings(logit_bias={999: 1}))]}, "999", "logit_bias"),
        ({"blanks": [Blank(2, SamplingSettings(max_tokens=200))]}, "cache", "tokens"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_field_and_remedy(
    tokenizer, make_model, changes, message, param
):
    engine = Engine(make_model("ours"), tokenizer, EngineLimits(cache_tokens=128))
    request = Request("a", [3, 30, 6], [Blank(2, SamplingSettings())])
    engine.add(dataclasses.replace(request, id="sound"))
    with pytest.raises(RequestError, match=message) as error:
        engine.add(dataclasses.replace(request, **changes))
    assert error.value.param == param
    assert pickle.loads(pickle.dumps(error.value)).param == param
    assert engine.stats.waiting == 1


def test_a_full_queue_refuses_the_next(tokenizer, make_model, make_request):
    engine = Engine(make_model("ours"), tokenizer, EngineLimits(max_waiting=2))
    for number in range(2):
        engine.add(make_request("the list", str(number)))
    with pytest.raises(RequestError) as error:
        engine.add(make_request("the list", "more"))
    assert error.value.code == "overloaded"
    with pytest.raises(RequestError, match="'0' is in work"):
        engine.add(make_request("the list", "0"))
