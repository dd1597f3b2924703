"""Chat, usage, tools, infill and decisions, under the numbers of the behaviours."""

import json
import math

import pytest

from glm_dist.serve.chat_protocol import plain_messages
from glm_dist.serve.errors import ApiError
from glm_dist.serve.templates import TEMPLATES, ChatTemplate
from glm_dist.serve.tools import TurnReader

SAY = [{"role": "user", "content": "The list?"}]
CHAT = {"messages": SAY, "temperature": 0, "max_tokens": 6}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


def post(server, path, **body):
    return server.http.post(path, json=body)


def events(server, path, **body):
    with server.http.stream("POST", path, json={**body, "stream": True}) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_behaviour_52_max_completion_tokens_wins(server):
    body = {**CHAT, "max_tokens": 50, "max_completion_tokens": 2, "ignore_eos": True}
    reply = post(server, "/v1/chat/completions", **body).json()
    assert reply["usage"]["completion_tokens"] == 2
    assert reply["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_behaviour_53_roles(server, role):
    messages = [{"role": role, "content": "x"}, *SAY]
    reply = post(server, "/v1/chat/completions", **{**CHAT, "messages": messages})
    assert reply.status_code == 200


def test_behaviour_54_parts_of_text_are_joined(server):
    parts = [{"type": "text", "text": "The "}, {"type": "text", "text": "list?"}]
    tokens = [
        post(server, "/tokenize", messages=[{"role": "user", "content": content}]).json()["tokens"]
        for content in ("The list?", parts)
    ]
    assert tokens[0] == tokens[1]


def test_behaviour_57_a_tool_that_has_to_be_called_is_called(server):
    chat = server.client.chat.completions
    asked = {"model": "tiny/glm", "messages": SAY, "tools": [TOOL], "tool_choice": "required"}
    whole = chat.create(**asked, temperature=0, max_tokens=6)
    [call] = whole.choices[0].message.tool_calls
    assert (call.function.name, whole.choices[0].message.content) == ("find", None)
    assert isinstance(call.function.arguments, str)
    parts = [p for c in chat.create(**asked, temperature=0, max_tokens=6, stream=True)
             for p in c.choices[0].delta.tool_calls or []]  # fmt: skip
    assert parts[0].function.name == "find"
    assert "".join(part.function.arguments for part in parts) == call.function.arguments
    unknown = {"type": "function", "function": {"name": "other"}}
    reply = post(server, "/v1/chat/completions", **CHAT, tools=[TOOL], tool_choice=unknown)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tool_choice")
    assert post(server, "/v1/chat/completions", **CHAT, tool_choice="none").status_code == 200


@pytest.mark.parametrize(
    ("layout", "text", "arguments"),
    [
        ("glm-4", 'find\n{"a": 1}', '{"a": 1}'),
        ("chatglm3", "find\n ```python\ntool_call(a=1)\n```", '{"a": 1}'),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_behaviour_57_calls_are_read_however_they_come(layout, text, arguments, size):
    reader = TurnReader(["find", "finder"], layout)
    said = []
    for start in range(0, len(text), size):
        said += reader.read(text[start : start + size], is_end=start + size >= len(text))
    assert [one.called for one in said if one.called] == ["find"]
    assert "".join(one.arguments for one in said) == arguments
    reader = TurnReader(["find"], layout)
    said = [*reader.read("fi"), *reader.read("ne words", is_end=True)]
    assert ("".join(one.text for one in said), reader.has_called) == ("fine words", False)


def test_behaviour_58_going_on_and_beginning_exclude_each_other(server):
    messages = [*SAY, {"role": "assistant", "content": "It"}]
    body = {**CHAT, "messages": messages, "continue_final_message": True}
    assert post(server, "/v1/chat/completions", **body).status_code == 200
    reply = post(server, "/v1/chat/completions", **body, add_generation_prompt=True)
    assert reply.status_code == 400


def test_behaviour_59_templates_of_clients_are_refused(server):
    reply = post(server, "/v1/chat/completions", **CHAT, chat_template="{{ 1 }}")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "chat_template")
    reply = post(server, "/v1/chat/completions", **CHAT, chat_template_kwargs={"tone": "kind"})
    assert reply.status_code == 200


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ 'x' * 1000000000 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ messages }}{% endfor %}",
    ],
)
def test_a_template_reaches_nothing_and_ends(tokenizer, source):
    template = ChatTemplate(source, tokenizer)
    with pytest.raises(ApiError):
        template.tokens([{"content": "x"}], [], max_bytes=10_000)


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_text_of_a_client_becomes_a_role(tokenizer, name):
    template = ChatTemplate.named(name, tokenizer)
    special = set(tokenizer.special_ids.tolist())
    names = "".join(tokenizer.piece(token) for token in special)

    def roles(text):
        messages = [{"role": "user", "content": text}, {"role": "tool", "content": text}]
        tools = [{"name": "find", "description": text}]
        tokens = template.tokens(messages, tools, max_bytes=100_000)
        return [token for token in tokens if token in special], tokens

    plain, tricky = roles("x"), roles(names)
    assert plain[0] == tricky[0]
    assert names in tokenizer.decode(tricky[1])


def test_behaviours_61_to_64_usage(server):
    whole = post(server, "/v1/chat/completions", **CHAT, n=2).json()["usage"]
    assert whole["total_tokens"] == whole["prompt_tokens"] + whole["completion_tokens"]
    assert all("usage" not in part for part in events(server, "/v1/chat/completions", **CHAT, n=2))
    options = {"include_usage": True, "continuous_usage_stats": True}
    parts = events(server, "/v1/chat/completions", **CHAT, n=2, stream_options=options)
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"]["completion_tokens"] == whole["completion_tokens"]
    counts = [part["usage"]["completion_tokens"] for part in parts]
    assert counts == sorted(counts)
    options = {"include_usage": True, "include_obfuscation": False}
    assert post(server, "/v1/chat/completions", **CHAT, stream_options=options).status_code == 200


def test_blanks_have_options_and_an_order_of_their_own(server):
    blank = {"id": "b", "choices": ["items", "lists"]}
    segments = [{"text": "The [MASK] "}, {"blank": {"max_tokens": 2}}, {"text": " of "},
                {"blank": blank}, {"text": "."}]  # fmt: skip
    body = {"segments": segments, "temperature": 0, "order": [1, 0], "logprobs": 1}
    [choice] = post(server, "/v1/infill", **body).json()["choices"]
    first, second = choice["blanks"]
    assert choice["text"] == f"The [MASK] {first['text']} of {second['text']}."
    assert (second["id"], second["text"] in blank["choices"]) == ("b", True)
    for one in (first, second):
        assert choice["text"][one["start"] : one["end"]] == one["text"]
        assert one["logprobs"]["content"]
    parts = [part["choices"][0] for part in events(server, "/v1/infill", **body)]
    order = [part["blank_index"] for part in parts]
    assert order == sorted(order, reverse=True)
    assert {part.get("blank_id") for part in parts if part["blank_index"] == 1} == {"b"}
    for change in ({"order": [0, 0]}, {"order": [0]}):
        assert post(server, "/v1/infill", **{**body, **change}).status_code == 400
    reply = post(server, "/v1/infill", input="a [MASK]", parse_masks=False)
    assert reply.status_code == 400


def test_an_editor_is_answered_as_by_llama_cpp(server):
    body = {"input_prefix": "The ", "input_suffix": " items", "temperature": 0, "n_predict": 5}
    whole = post(server, "/infill", **body).json()
    filled = post(server, "/v1/infill", input="The [MASK] items", temperature=0, max_tokens=5)
    assert whole["content"] == filled.json()["choices"][0]["blanks"][0]["text"]
    with server.http.stream("POST", "/infill", json={**body, "stream": True}) as reply:
        parts = [json.loads(line[6:]) for line in reply.iter_lines() if line]
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert [part["stop"] for part in parts] == [False] * (len(parts) - 1) + [True]


def test_behaviour_72_decisions_by_the_official_client(server):
    decision = server.client.decisions.create(
        model="tiny/glm",
        input=[{"role": "user", "content": "The list returns its items."}],
        questions=[
            {"type": "predicate", "instructions": "It is a list.", "name": "first"},
            {
                "type": "choice",
                "instructions": "Which?",
                "choices": [{"value": "list", "description": "a row"}, {"value": True}],
            },
            {
                "type": "score",
                "instructions": "How good?",
                "levels": [{"label": "bad"}, {"label": "fair"}, {"label": "good"}],
            },
        ],
    )
    predicate, choice, score = decision.answers
    assert (predicate.type, predicate.name) == ("predicate", "first")
    assert 0 <= predicate.probability <= 1
    assert math.isclose(sum(one.probability for one in choice.probabilities), 1)
    assert [one.value for one in choice.probabilities] == ["list", True]
    assert choice.confidence == max(one.probability for one in choice.probabilities)
    expected = sum(one.value * one.probability for one in score.probabilities)
    assert math.isclose(score.score, expected)
    assert decision.usage.input_tokens > 0


def test_scores_are_log_likelihoods(server):
    body = {"text_1": "The list", "text_2": [" returns", " returns its items"]}
    found = post(server, "/v1/score", **body).json()["data"]
    assert found[0]["score"] > found[1]["score"]
    mean = post(server, "/v1/score", **body, normalise_length=True).json()["data"]
    for one, other in zip(found, mean, strict=True):
        assert math.isclose(one["score"] / one["num_tokens"], other["score"], rel_tol=1e-6)
    assert post(server, "/v1/score", text_1=["a", "b"], text_2=["c"] * 3).status_code == 400


def test_messages_are_told_to_templates_with_their_calls():
    from glm_dist.serve.chat_protocol import Message

    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"a": 1}'}}
    message = Message.model_validate({"role": "assistant", "tool_calls": [call]})
    [plain] = plain_messages([message])
    assert plain["tool_calls"] == [{"name": "find", "arguments": {"a": 1}}]
