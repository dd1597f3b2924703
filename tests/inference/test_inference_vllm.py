"""Our bookkeeping around vLLM, with a vLLM that says what it is told; the real one is asked in
tests/jobs/test_jobs_serve_vllm.py."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from pydantic import ValidationError

from glm_dist.engine import save_weights
from glm_dist.engine.export import export_model
from glm_dist.errors import ModelError, RequestError
from glm_dist.inference import (
    BeamSettings,
    EmbedRequest,
    EngineLimits,
    SamplingSettings,
    ScoreRequest,
    Scores,
)
from glm_dist.inference.vllm_engine import VllmEngine
from glm_dist.inference.vllm_terms import sampling_arguments, structured_arguments
from glm_dist.serve.settings import ServeSettings

LIMITS = EngineLimits(max_running=2, max_waiting=2)


def ranked(logprob, rank):
    return SimpleNamespace(logprob=logprob, rank=rank)


class ScriptedVllm:
    """Says one token of a script to each request a step, and notes what was aborted."""

    def __init__(self):
        self.script, self.asked, self.said, self.aborted = [], {}, {}, []

    def add_request(self, name, prompt, params, priority=0):
        self.asked[name], self.said[name] = (prompt["prompt_token_ids"], params, priority), 0

    def abort_request(self, names):
        self.aborted += [name for name in names if self.asked.pop(name, None)]

    def step(self):
        return [self._say(name) for name in list(self.asked)]

    def _say(self, name):
        prompt, params, _ = self.asked[name]
        token, reason = self.script[self.said[name]], None
        self.said[name] += 1
        if token in getattr(params, "stop_token_ids", ()):
            reason = "stop"
        elif self.said[name] == params.max_tokens:
            reason = "length"
        known = {
            token: SimpleNamespace(logprob=-1.5, rank=1),
            0: SimpleNamespace(logprob=-2, rank=2),
        }
        given = [{one: SimpleNamespace(logprob=-0.5, rank=1)} for one in prompt]
        if reason:
            del self.asked[name]
        completion = SimpleNamespace(token_ids=[token], logprobs=[known], finish_reason=reason)
        return SimpleNamespace(
            request_id=name, outputs=[completion], prompt_logprobs=given,
            finished=bool(reason), num_cached_tokens=4,
        )  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tokenizer, make_model):
    folder = tmp_path_factory.mktemp("models")
    model = make_model("glm_4")
    save_weights(folder / "own", dict(model.state_dict()))
    tokenizer.save(folder / "own")
    config = {"model": model.settings.model_dump(mode="json"), "name": "own"}
    (folder / "own" / "config.json").write_text(json.dumps(config))
    export_model(folder / "own", folder / "exported")
    return folder


@pytest.fixture
def engine(exported, monkeypatch):
    vllm, params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    scripted = ScriptedVllm()
    vllm.EngineArgs = lambda **given: SimpleNamespace(**given)
    vllm.LLMEngine = SimpleNamespace(from_engine_args=lambda _: scripted)
    vllm.SamplingParams = lambda **given: SimpleNamespace(**given)
    params.RequestOutputKind = SimpleNamespace(DELTA="delta")
    params.StructuredOutputsParams = lambda **given: SimpleNamespace(**given)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    made = VllmEngine(exported / "exported", LIMITS, {})
    made.scripted = scripted
    return made


def run(engine):
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


def test_tokens_become_deltas_and_an_end_is_no_part_of_the_answer(engine, tokenizer, make_request):
    text = "the list returns"
    engine.scripted.script = [*tokenizer.encode(text).tolist(), tokenizer.special.eop]
    request = make_request("a", sampling=SamplingSettings(max_tokens=40, num_logprobs=1))
    engine.add(request)
    prompt, params, _ = engine.scripted.asked["a/0"]
    assert prompt == [*request.tokens, tokenizer.special.sop]
    assert tokenizer.special.eop in params.stop_token_ids
    outputs = run(engine)
    assert "".join(delta.text for delta in outputs) == text
    assert [delta.finish_reason for delta in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert (outputs[-1].finish_reason, outputs[-1].tokens, outputs[-1].is_last) == (
        "stop",
        (),
        True,
    )
    assert outputs[0].logprobs == (-1.5,)
    assert len(outputs[0].alternatives[0]) == 1
    usage = engine.usage("a")
    assert (usage.completion_tokens, usage.cached_tokens) == (len(outputs) - 1, 4)


def test_a_stop_string_ends_the_answer_and_what_vllm_still_does_for_it(
    engine, tokenizer, make_request
):
    engine.scripted.script = tokenizer.encode("the list returns its items").tolist()
    engine.add(make_request("a", sampling=SamplingSettings(max_tokens=40, stop=(" returns",))))
    outputs = run(engine)
    assert "".join(delta.text for delta in outputs) == "the list"
    assert (outputs[-1].finish_reason, outputs[-1].stopped_by) == ("stop", " returns")
    assert engine.scripted.aborted == ["a/0"]


def test_samples_have_seeds_of_their_own_and_all_are_waited_for(engine, tokenizer, make_request):
    engine.scripted.script = tokenizer.encode("the list returns").tolist()
    sampling = SamplingSettings(max_tokens=3, temperature=1, seed=9)
    engine.add(make_request("a", sampling=sampling, num_samples=2))
    seeds = [params.seed for _, params, _ in engine.scripted.asked.values()]
    assert len(set(seeds)) == 2
    outputs = run(engine)
    assert [delta.is_last for delta in outputs].count(True) == 1
    assert {delta.sample for delta in outputs if delta.finish_reason == "length"} == {0, 1}


def test_options_are_scored_behind_the_prompt_with_their_ends(engine, tokenizer):
    special = tokenizer.special
    options = [tokenizer.encode("its items").tolist(), tokenizer.encode("a").tolist()]
    engine.scripted.script = [0, 0]
    engine.add(ScoreRequest("s", [special.enc, special.gmask], 1, options))
    prompts = [prompt for prompt, _, _ in engine.scripted.asked.values()]
    assert prompts[0] == [special.enc, special.gmask, special.sop, *options[0], special.eop]
    [scores] = run(engine)
    assert isinstance(scores, Scores)
    assert [one.total for one in scores.options] == [-0.5 * (len(one) + 1) for one in options]


def test_who_leaves_frees_vllm_and_too_many_are_refused(engine, make_request):
    for name in "abcd":
        engine.add(make_request("a", name))
    with pytest.raises(RequestError, match="waiting already") as refused:
        engine.add(make_request("a", "e"))
    assert refused.value.code == "overloaded"
    engine.cancel("b")
    assert engine.scripted.aborted == ["b/0"]
    engine.add(make_request("a", "e"))
    assert engine.stats.running == 2


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"beams": BeamSettings(num_beams=2)}, "use_beam_search"),
        ({"sampling": SamplingSettings(no_repeat_ngram=2)}, "no_repeat_ngram"),
        ({"text": "the [MASK] returns"}, "blanks"),
    ],
)
def test_what_vllm_does_not_is_refused_by_name(engine, make_request, change, param):
    with pytest.raises(RequestError, match="vLLM") as refused:
        engine.add(make_request(change.pop("text", "a"), **change))
    assert refused.value.param == param
    with pytest.raises(RequestError, match="neither embeds nor labels"):
        engine.add(EmbedRequest("v", [3, 5]))


def test_only_exports_are_hosted(exported):
    with pytest.raises(ModelError, match=r"jobs/export.py"):
        VllmEngine(exported / "own", LIMITS, {})


def test_ends_are_stops_or_forbidden_and_forms_have_vllms_names():
    told = sampling_arguments(SamplingSettings(stop_tokens=(7,)), 9, {2, 3}, [0, 1, 7])
    assert told["stop_token_ids"] == [2, 3, 7]
    assert told["logit_bias"] == {0: -100.0, 1: -100.0}
    told = sampling_arguments(SamplingSettings(ignore_eos=True, logit_bias={5: 1.0}), 9, {2}, [0])
    assert told["stop_token_ids"] == []
    assert told["logit_bias"] == {0: -100.0, 2: -100.0, 5: 1.0}
    assert structured_arguments(SamplingSettings(choices=("a", "b"))) == {"choice": ["a", "b"]}
    assert structured_arguments(SamplingSettings(json_schema='{"type": "null"}')) == {
        "json": {"type": "null"}
    }
    assert structured_arguments(SamplingSettings(regex="a+")) == {"regex": "a+"}
    assert structured_arguments(SamplingSettings()) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"front": "off"}, "front: got 'off' with vllm"),
        ({"adapters": {"polite": "runs/polite"}}, "leave adapters or vllm out"),
        ({"engine": {"dtype": "int8"}}, "quantization"),
    ],
)
def test_settings_that_do_not_go_with_vllm_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        ServeSettings(vllm={"python": "python"}, **changes)
