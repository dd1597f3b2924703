"""`/v1/completions` as OpenAI's client reads it."""

import json

import openai
import pytest

from glm_dist.inference import GenerationSettings, Generator

PROMPT = "The list returns"
GREEDY = {"model": "tiny/glm", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def offline(model, tokenizer):
    """Greedy continuation by the library."""
    generator = Generator(model, tokenizer)

    def generate(text, max_tokens=12):
        [found] = generator.generate([text], GenerationSettings(max_new_tokens=max_tokens))
        return found

    return generate


def test_a_greedy_completion_is_that_of_the_library(server, offline):
    reply = server.client.completions.create(prompt=PROMPT, **GREEDY)
    assert reply.object == "text_completion"
    assert reply.id.startswith("cmpl-")
    [choice] = reply.choices
    assert choice.text == offline(PROMPT).blanks[0]
    assert choice.finish_reason in ("stop", "length")
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 12


def test_a_stream_says_the_same_and_ends_once(server):
    whole = server.client.completions.create(prompt=PROMPT, **GREEDY)
    parts = list(server.client.completions.create(prompt=PROMPT, stream=True, **GREEDY))
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    ends = [part.choices[0].finish_reason for part in parts if part.choices[0].finish_reason]
    assert ends == [whole.choices[0].finish_reason]
    assert len({part.id for part in parts}) == 1


def test_events_are_framed_exactly_and_end_with_done(server):
    body = {**GREEDY, "prompt": "大學之道", "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as reply:
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reply.headers["cache-control"] == "no-cache"
        content = reply.read().decode()
    events = content.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        assert event.startswith("data: ")
        assert "\n" not in event
        json.loads(event.removeprefix("data: "))


def test_prompts_and_samples_are_numbered_and_ids_are_taken_as_prompts(server, tokenizer):
    ids = tokenizer.encode(PROMPT).tolist()
    reply = server.client.completions.create(prompt=[ids, ids], n=2, seed=5, **GREEDY)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in reply.choices}) == 1  # greedy
    drawn = {**GREEDY, "temperature": 1}
    first, second = (
        server.client.completions.create(prompt=PROMPT, seed=7, n=3, **drawn) for _ in range(2)
    )
    assert [c.text for c in first.choices] == [c.text for c in second.choices]
    assert len({c.text for c in first.choices}) > 1


def test_logprobs_have_equal_lengths_and_hold_the_token_taken(server):
    reply = server.client.completions.create(
        prompt=PROMPT, logprobs=2, seed=1, **{**GREEDY, "temperature": 1.5}
    )
    logprobs = reply.choices[0].logprobs
    sizes = {len(value) for value in logprobs.model_dump().values()}
    assert sizes == {reply.usage.completion_tokens}
    for name, value, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert top[name] == pytest.approx(value)
        assert 2 <= len(top) <= 3
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset == sorted(logprobs.text_offset)


def test_echo_gives_the_prompt_and_its_log_probabilities(server, tokenizer):
    ids = tokenizer.encode(PROMPT).tolist()
    reply = server.client.completions.create(
        prompt=ids, echo=True, logprobs=1, **{**GREEDY, "max_tokens": 1}
    )
    [choice] = reply.choices
    assert choice.text.startswith(PROMPT)
    assert len(choice.logprobs.tokens) == len(ids) + 1
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])


def test_a_suffix_is_seen_and_only_the_blank_is_given(server, offline):
    reply = server.client.completions.create(prompt="The list ", suffix=" items", **GREEDY)
    assert reply.choices[0].text == offline("The list [MASK] items").blanks[0]


def test_a_stop_string_ends_the_answer_and_never_shows(server, offline):
    text = offline(PROMPT).blanks[0]
    stop = text[2:4]
    reply = server.client.completions.create(prompt=PROMPT, stop=stop, **GREEDY)
    assert reply.choices[0].text == text[: text.index(stop)]
    assert reply.choices[0].finish_reason == "stop"


def test_usage_comes_at_the_end_of_a_stream_where_it_is_asked_for(server):
    options = {"include_usage": True}
    parts = list(
        server.client.completions.create(
            prompt=PROMPT, stream=True, stream_options=options, **GREEDY
        )
    )
    assert all(part.usage is None for part in parts[:-1])
    assert parts[-1].choices == []
    assert parts[-1].usage.completion_tokens > 0


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"logprobs": 99}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [100000]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"n": 1000}, "n"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"suffix": "x", "echo": True}, "echo"),
        ({"max_tokens": 100000}, "max_tokens"),
        ({"prompt": "word " * 500}, "prompt"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"max_tokens": "many"}, "max_tokens"),
    ],
)
def test_what_cannot_be_answered_is_a_400_that_names_the_field(server, change, param):
    reply = server.http.post("/v1/completions", json={**GREEDY, "prompt": PROMPT, **change})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 500
    server.client.completions.create(prompt=PROMPT, **GREEDY)  # it goes on serving


def test_a_prompt_that_is_too_long_says_so_by_code(server):
    with pytest.raises(openai.BadRequestError) as caught:
        server.client.completions.create(prompt="word " * 500, stream=True, **GREEDY)
    assert caught.value.code == "context_length_exceeded"
