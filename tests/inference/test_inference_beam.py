"""Beam search: the answers of transformers' search, and of all answers the best."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import transformers

from glm_dist.errors import RequestError
from glm_dist.inference import (
    BeamSettings,
    Delta,
    Engine,
    EngineLimits,
    SamplingSettings,
    ScoreRequest,
)
from glm_dist.inference.beam import Beam
from glm_dist.inference.scheduler import Scheduler
from glm_dist.model.huggingface import config_from_settings, to_huggingface
from glm_dist.model.weight_files import write_folder

SETTINGS = [
    {"num_beams": 4},
    {"num_beams": 3, "length_penalty": 0.0},
    {"num_beams": 5, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 4, "length_penalty": -1.5},
    {"num_beams": 4, "length_penalty": 0.7, "early_stopping": "never"},
    {"num_beams": 1},
]


@pytest.fixture(scope="module")
def causal(make_model):
    """A causal model whose answers end now and then."""
    return make_model("glm_4", init_std=0.35)


@pytest.fixture(scope="module")
def theirs(causal, tmp_path_factory):
    """The same model in transformers."""
    folder = tmp_path_factory.mktemp("export") / "model"
    write_folder(
        folder,
        to_huggingface(iter(causal.state_dict().items()), causal.settings),
        {"config.json": config_from_settings(causal.settings, torch.float32, pad_token_id=0)},
        shard_bytes=1 << 30,
    )
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


class NoRepeat(transformers.LogitsProcessor):
    """Their processor, for the tokens behind a prompt only."""

    def __init__(self, size, num_prompt_tokens):
        self._inner, self._start = (
            transformers.NoRepeatNGramLogitsProcessor(size),
            num_prompt_tokens,
        )

    def __call__(self, input_ids, scores):
        return self._inner(input_ids[:, self._start :], scores)


def their_answers(model, tokenizer, request):
    """(tokens without an end, score) of each answer."""
    special, sampling, beams = tokenizer.special, request.blanks[0].sampling, request.beams
    ends = [special.eop, special.eos]
    prompt = torch.tensor([[*request.tokens, special.sop]])
    size = sampling.no_repeat_ngram
    found = model.generate(
        prompt,
        max_new_tokens=sampling.max_tokens,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=special.pad,
        suppress_tokens=[t for t in tokenizer.special_ids.tolist() if t not in ends],
        num_return_sequences=request.num_samples,
        logits_processor=[NoRepeat(size, prompt.shape[1])] if size else [],
        return_dict_in_generate=True,
        output_scores=True,
        **beams.model_dump(),
    )
    answers = []
    for row, score in zip(found.sequences, found.sequences_scores, strict=True):
        tokens = row[prompt.shape[1] :].tolist()
        length = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        answers.append((tokens[:length], float(score)))
    return answers


def our_answers(outputs):
    return [(list(delta.tokens), delta.score) for delta in outputs]


@pytest.mark.parametrize("options", SETTINGS, ids=range(len(SETTINGS)))
def test_answers_and_scores_are_those_of_transformers(
    options, causal, theirs, tokenizer, make_request
):
    beams = BeamSettings(**options)
    reasons = set()
    for text, size in (("the list returns", 0), ("a number of", 2)):
        sampling = SamplingSettings(max_tokens=14, no_repeat_ngram=size, num_logprobs=0)
        request = make_request(
            text, sampling=sampling, beams=beams, num_samples=min(2, beams.num_beams)
        )
        if beams.num_beams == 1:
            request = dataclasses.replace(request, beams=None)
            [greedy] = [Engine(causal, tokenizer).generate([request])]
            tokens = [token for delta in greedy for token in delta.tokens]
            request = dataclasses.replace(request, beams=beams)
            [found] = Engine(causal, tokenizer).generate([request])
            assert list(found.tokens) == tokens
            continue
        outputs = Engine(causal, tokenizer).generate([request])
        expected = their_answers(theirs, tokenizer, request)
        assert [tokens for tokens, _ in our_answers(outputs)] == [tokens for tokens, _ in expected]
        for delta, (_, score) in zip(outputs, expected, strict=True):
            assert delta.score == pytest.approx(score, rel=1e-6, abs=1e-4)
            reasons.add(delta.finish_reason)
        assert [delta.is_last for delta in outputs] == [False] * (len(outputs) - 1) + [True]
    assert reasons or beams.num_beams == 1


@pytest.mark.parametrize("prefix_family", ["2021", "rotary_2d", "ours"])
def test_with_beams_for_all_of_them_the_best_of_all_answers_are_found(
    prefix_family, tokenizer, make_model, make_request
):
    model, special = make_model(prefix_family), tokenizer.special
    letters = tokenizer.encode("the list").tolist()[:2]
    sampling = SamplingSettings(
        max_tokens=4, allowed_tokens=(*letters, special.eop), num_logprobs=0
    )
    beams = BeamSettings(num_beams=31, length_penalty=0.0)
    request = make_request("a [MASK] of", sampling=sampling, beams=beams, num_samples=5)
    outputs = Engine(model, tokenizer).generate([request])
    options = [
        list(tokens) for size in range(5) for tokens in itertools.product(letters, repeat=size)
    ]
    scoring = ScoreRequest("s", request.tokens, request.blanks[0].place, options)
    [scores] = Engine(model, tokenizer).generate([scoring])
    # An answer that is as long as it may be has no end.
    totals = [sum(score.logprobs[:4]) for score in scores.options]
    best = sorted(zip(totals, options, strict=True), reverse=True)[:5]
    assert [list(delta.tokens) for delta in outputs] == [tokens for _, tokens in best]
    for delta, (total, tokens) in zip(outputs, best, strict=True):
        assert delta.score == pytest.approx(total, abs=1e-6)
        score = scores.options[options.index(tokens)]
        assert delta.logprobs == score.logprobs[: len(tokens)]


def searches(tokenizer, make_request, count, seed):
    """Requests for beam searches of several shapes."""
    rng = np.random.default_rng(seed)
    words = "the list returns a number of items when the value is in range".split()
    requests = []
    for number in range(count):
        text = " ".join(rng.choice(words, size=rng.integers(1, 12)))
        num_blanks = int(rng.integers(1, 3))
        sampling = SamplingSettings(
            max_tokens=int(rng.integers(3, 25)),
            num_logprobs=int(rng.integers(3)),
            no_repeat_ngram=int(rng.integers(3)),
            regex="[a-z ]{4,30}" if rng.random() < 0.3 else None,
        )
        is_joint = bool(rng.random() < 0.5)
        beams = BeamSettings(num_beams=int(rng.integers(2, 6)), length_penalty=0.5)
        requests.append(
            make_request(
                text + " [MASK] items" * num_blanks,
                f"b{number}",
                sampling,
                beams=beams,
                is_joint=is_joint,
                num_samples=1 if is_joint else 2,
            )
        )
    return requests


def by_request(outputs):
    found = {}
    for output in outputs:
        assert isinstance(output, Delta)
        found.setdefault(output.request_id, []).append(dataclasses.replace(output, is_last=False))
    return {key: sorted(deltas, key=lambda d: (d.blank, d.sample)) for key, deltas in found.items()}


@pytest.fixture
def preempted(monkeypatch):
    """Answers that lost their blocks, and whether they waited for others when they did."""
    found, preempt = [], Scheduler._preempt

    def note(scheduler, answer, plan):
        found.append((answer.is_idle, answer))
        preempt(scheduler, answer, plan)

    monkeypatch.setattr(Scheduler, "_preempt", note)
    return found


@pytest.mark.parametrize("searched", ["glm_4", "rotary_2d"])
def test_a_search_finds_bitwise_the_same_beside_others_and_where_room_is_short(
    searched, tokenizer, make_model, make_request, random_requests, preempted
):
    model = make_model(searched)
    mine = searches(tokenizer, make_request, 6, seed=1)
    others = random_requests(np.random.default_rng(2), 8, longest=60)
    alone = Engine(model, tokenizer)
    expected = {}
    for request in mine:
        expected |= by_request(alone.generate([request]))
    for max_running, cache_tokens in ((2, 160), (7, 192)):
        limits = EngineLimits(max_running=max_running, cache_tokens=cache_tokens)
        engine, rng = Engine(model, tokenizer, limits), np.random.default_rng(max_running)
        together = [*mine, *others]
        found = by_request(engine.generate([together[i] for i in rng.permutation(len(together))]))
        assert {key: found[key] for key in expected} == expected
        assert engine.stats.free_blocks == engine.stats.total_blocks
        assert engine.stats.running == engine.stats.waiting == 0
    assert {is_idle for is_idle, beam in preempted if isinstance(beam, Beam)} == {False, True}


def test_beams_share_the_blocks_of_what_they_have_in_common(tokenizer, make_model, make_request):
    engine = Engine(make_model("ours"), tokenizer)
    sampling = SamplingSettings(max_tokens=60, ignore_eos=True)
    request = make_request("the list", sampling=sampling, beams=BeamSettings(num_beams=8))
    engine.add(request)
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, engine.stats.total_blocks - engine.stats.free_blocks)
    assert 4 <= most < 8 * 4


def test_a_search_that_is_cancelled_gives_all_blocks_back(tokenizer, make_model, make_request):
    engine = Engine(make_model("ours"), tokenizer, EngineLimits(cache_tokens=256))
    sampling = SamplingSettings(max_tokens=40, ignore_eos=True)
    beams = BeamSettings(num_beams=6)
    for steps in (1, 2, 7, 30):
        requests = [make_request("the list [MASK]", str(i), sampling, beams=beams) for i in (0, 1)]
        for request in requests:
            engine.add(request)
        for _ in range(steps):
            engine.step()
        for request in requests:
            engine.cancel(request.id)
        assert not engine.has_work
        assert engine.stats.free_blocks == engine.stats.total_blocks
        assert engine.stats.running == engine.stats.waiting == 0


def test_a_search_gives_fewer_answers_where_there_are_no_more(tokenizer, make_model, make_request):
    sampling = SamplingSettings(choices=("a range", "items"))
    request = make_request("[MASK]", sampling=sampling, beams=BeamSettings(num_beams=4))
    request = dataclasses.replace(request, num_samples=4)
    outputs = Engine(make_model("ours"), tokenizer).generate([request])
    assert sorted(delta.text for delta in outputs) == ["a range", "items"]
    assert outputs[0].score >= outputs[1].score
    assert [delta.is_last for delta in outputs] == [False, True]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"num_samples": 5}, "num_samples"),
        ({"text": "[MASK] a [MASK]", "num_samples": 2}, "num_samples"),
        ({"sampling": SamplingSettings(temperature=0.5)}, "temperature"),
        ({"sampling": SamplingSettings(stop=("a",))}, "stop"),
    ],
)
def test_what_a_search_cannot_do_is_refused(changes, param, tokenizer, make_model, make_request):
    text = changes.pop("text", "[MASK]") if "text" in changes else "[MASK]"
    request = make_request(text, beams=BeamSettings(num_beams=4), **changes)
    with pytest.raises(RequestError) as error:
        Engine(make_model("ours"), tokenizer).add(request)
    assert error.value.param == param
