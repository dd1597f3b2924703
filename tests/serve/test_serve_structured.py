"""Answers of a form: JSON, choices, patterns and grammars, by the official client."""

import json
import re
from typing import Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from glm_dist.model import build_model

SAY = [{"role": "user", "content": "The list?"}]
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["list", "item"]}, "size": {"enum": [1, 20, None]}},
    "required": ["kind", "size"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
    for name in ("find", "keep")
]
FORMS = [
    ({"json": SCHEMA}, "json"),
    ({"json": json.dumps(SCHEMA)}, "json"),
    ({"regex": "[0-9]{3}-[a-f]{2}"}, "[0-9]{3}-[a-f]{2}"),
    ({"choice": ["red", "green"]}, "red|green"),
    ({"grammar": 'root ::= ("a" | "b") "!"'}, "[ab]!"),
]


class Thing(BaseModel):
    kind: Literal["list", "item"]
    number: int = Field(ge=0, le=9)
    parts: list[bool] = Field(max_length=2)


def is_of_form(text, form):
    if form == "json":
        jsonschema.validate(json.loads(text), SCHEMA)
        return True
    return re.fullmatch(form, text) is not None


@pytest.fixture(scope="module")
def server(serve, model):
    """Of a model that has room for the definitions of tools."""
    settings = model.settings.model_copy(update={"max_position_embeddings": 1024})
    return serve(model=build_model(settings).eval())


@pytest.fixture
def chat(server):
    def ask(**options):
        body = {"model": "tiny/glm", "messages": SAY, "max_tokens": 100, **options}
        return server.client.chat.completions.create(**body)

    return ask


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


def test_behaviour_56_answers_are_parsed_by_the_client(server):
    for seed in range(4):
        reply = server.client.chat.completions.parse(
            model="tiny/glm", messages=SAY, response_format=Thing, seed=seed, max_tokens=150
        )
        assert isinstance(reply.choices[0].message.parsed, Thing)
        assert reply.choices[0].finish_reason == "stop"


def test_behaviour_56_an_object_is_an_object_streamed_or_not(chat):
    options = {"response_format": {"type": "json_object"}, "temperature": 0, "max_tokens": 40}
    whole = chat(**options).choices[0].message.content
    assert re.match(r"\{(\"|\})", whole)
    parts = chat(**options, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole
    text = chat(response_format={"type": "text"}, temperature=0, max_tokens=9)
    assert (
        text.choices[0].message.content
        == chat(temperature=0, max_tokens=9).choices[0].message.content
    )


@pytest.mark.parametrize(("form", "expected"), FORMS, ids=range(len(FORMS)))
def test_forms_are_asked_for_by_the_names_of_vllm(server, chat, form, expected):
    [(name, value)] = form.items()
    for body in ({"structured_outputs": form}, {f"guided_{name}": value}):
        [said] = chat(extra_body=body, temperature=2).choices
        done = server.client.completions.create(
            model="tiny/glm", prompt="The", extra_body=body, max_tokens=100, n=3
        )
        for text in (said.message.content, *(choice.text for choice in done.choices)):
            assert is_of_form(text, expected)


@pytest.mark.parametrize(
    "tool_choice", ["required", {"type": "function", "function": {"name": "keep"}}]
)
def test_behaviour_57_arguments_keep_to_the_schema_of_the_tool(chat, tool_choice):
    options = {"tools": TOOLS, "tool_choice": tool_choice, "seed": 3}
    whole = chat(**options).choices[0]
    [call] = whole.message.tool_calls
    assert is_of_form(call.function.arguments, "json")
    assert whole.finish_reason == "tool_calls"
    assert call.function.name == "keep" or tool_choice == "required"
    calls = [c for part in chat(**options, stream=True)
             for c in part.choices[0].delta.tool_calls or []]  # fmt: skip
    assert "".join(c.function.arguments or "" for c in calls) == call.function.arguments


def test_each_blank_has_a_form_of_its_own(server):
    blanks = [
        {"regex": "[0-9]{2}"},
        {},
        {"json_schema": SCHEMA},
        {"grammar": 'root ::= "yes" | "no"'},
    ]
    body = {"input": "a [MASK] b [MASK] c [MASK] d [MASK]", "blanks": blanks, "max_tokens": 60}
    for order in ("left_to_right", "independent"):
        shape = {"guided_choice": ["red", "green"], "order": order}
        [choice] = server.http.post("/v1/infill", json={**body, **shape}).json()["choices"]
        texts = [blank["text"] for blank in choice["blanks"]]
        for text, form in zip(texts, ("[0-9]{2}", "red|green", "json", "yes|no"), strict=True):
            assert is_of_form(text, form)


BAD = [
    ({"response_format": schema_format({"type": "strang"})}, "json_schema"),
    ({"response_format": schema_format({"not": {"type": "string"}})}, "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"extra_body": {"structured_outputs": {"regex": "(a"}}}, "regex"),
    ({"extra_body": {"guided_grammar": "root ::= other"}}, "grammar"),
    ({"extra_body": {"structured_outputs": {"regex": "a", "choice": ["a"]}}}, "structured_outputs"),
    ({"extra_body": {"guided_json": {}, "guided_regex": "a"}}, "guided_regex"),
    ({"tools": TOOLS, "extra_body": {"guided_regex": "a"}}, "tools"),
]


@pytest.mark.parametrize(("options", "param"), BAD, ids=range(len(BAD)))
def test_behaviour_56_what_cannot_be_held_is_refused(chat, options, param):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            chat(**options, stream=stream)
        assert (refused.value.param, refused.value.type) == (param, "invalid_request_error")
        assert "Traceback" not in refused.value.message
    assert chat(max_tokens=1).choices


def test_a_form_that_turns_out_too_much_is_the_fault_of_the_request(chat, tokenizer):
    likely = {str(int(tokenizer.encode("a")[-1])): 100}
    with pytest.raises(openai.BadRequestError) as refused:
        chat(extra_body={"guided_regex": "((a{0,99}){0,99}){0,99}b"}, logit_bias=likely)
    assert refused.value.code == "constraint_too_complex"
