"""Beam search and banned words over HTTP, by the names that the field has for them."""

import json

import openai
import pytest

from glm_dist.inference import BeamSettings, Blank, Engine, Request, SamplingSettings

SAY = [{"role": "user", "content": "The list?"}]
SEARCH = {
    "use_beam_search": True,
    "beam_width": 4,
    "length_penalty": 0.5,
    "early_stopping": "never",
}


@pytest.fixture
def post(server):
    def ask(path, **body):
        return server.http.post(path, json={"max_tokens": 8, **body})

    return ask


@pytest.fixture(scope="module")
def found(model, tokenizer):
    """What the engine's own search finds behind a text."""
    special = tokenizer.special
    tokens = [special.enc, *tokenizer.encode("The list").tolist(), special.gmask]
    blank = Blank(len(tokens) - 1, SamplingSettings(max_tokens=8))
    beams = BeamSettings(num_beams=4, length_penalty=0.5, early_stopping="never")
    deltas = Engine(model, tokenizer).generate([Request("a", tokens, [blank], 3, beams=beams)])
    return [(delta.text, delta.finish_reason) for delta in deltas]


def test_the_answers_of_a_search_come_best_first(server, post, found):
    options = {key: value for key, value in SEARCH.items() if key != "beam_width"}
    for width in ({"beam_width": 4}, {"best_of": 4}, {"beam_width": 4, "best_of": 4}):
        reply = post("/v1/completions", prompt="The list", n=3, **options, **width)
        choices = reply.json()["choices"]
        assert [(one["text"], one["finish_reason"]) for one in choices] == found
        assert [one["index"] for one in choices] == [0, 1, 2]
    done = server.client.completions.create(
        model="tiny/glm", prompt="The list", n=3, max_tokens=8, extra_body=SEARCH
    )
    assert [choice.text for choice in done.choices] == [text for text, _ in found]


def test_a_search_finds_what_is_likelier_than_the_likeliest_tokens(post):
    search = {"use_beam_search": True, "beam_width": 16, "length_penalty": 0}
    shared = {"prompt": "The list", "logprobs": 0, "ignore_eos": True}
    totals = []
    for ways in (search, {"temperature": 0}):
        [choice] = post("/v1/completions", **shared, **ways).json()["choices"]
        totals.append(sum(choice["logprobs"]["token_logprobs"]))
    assert totals[0] > totals[1]


def test_a_search_answers_dialogues_blanks_and_editors(post):
    turns = post("/v1/chat/completions", messages=SAY, n=2, logprobs=True, **SEARCH).json()
    answers = [[each["token"] for each in one["logprobs"]["content"]] for one in turns["choices"]]
    assert all(answers)
    assert answers[0] != answers[1]  # though bytes that are no text read alike
    joint = post("/v1/infill", input="a [MASK] b [MASK]", **SEARCH).json()["choices"]
    assert [len(one["blanks"]) for one in joint] == [2]
    apart = {"input": "a [MASK] b [MASK]", "order": "independent", "n": 2}
    texts = [one["text"] for one in post("/v1/infill", **apart, **SEARCH).json()["choices"]]
    assert len(set(texts)) == 2
    edited = post("/infill", input_prefix="a", input_suffix="b", n_predict=4, **SEARCH)
    assert edited.json()["stop_type"] in ("eos", "limit")


def test_a_search_gives_no_more_answers_than_there_are(post):
    search = {"use_beam_search": True, "n": 4, "guided_choice": ["red", "green"]}
    choices = post("/v1/completions", prompt="a", **search).json()["choices"]
    assert sorted(choice["text"] for choice in choices) == ["green", "red"]
    search["order"] = "independent"
    filled = post("/v1/infill", input="[MASK] [MASK]", **search).json()["choices"]
    assert len(filled) == 2


REFUSED = [
    ({"beam_width": 3}, "beam_width"),
    ({"length_penalty": 2.0}, "length_penalty"),
    ({"early_stopping": True}, "early_stopping"),
    ({**SEARCH, "temperature": 0.5}, "temperature"),
    ({**SEARCH, "stop": "a"}, "stop"),
    ({**SEARCH, "stream": True}, "stream"),
    ({**SEARCH, "n": 5}, "beam_width"),
    ({**SEARCH, "best_of": 5}, "best_of"),
    ({**SEARCH, "beam_width": 17}, "beam_width"),
    ({"bad_words": ["a\ufffd"]}, "bad_words"),
    ({"bad_words": [""]}, "bad_words"),
    ({"bad_words": ["x" * 65]}, "bad_words"),
    ({"bad_words": ["x"] * 33}, "bad_words"),
]


@pytest.mark.parametrize(("options", "param"), REFUSED, ids=range(len(REFUSED)))
def test_what_does_not_go_together_is_refused(post, options, param):
    reply = post("/v1/completions", prompt="a", **options)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


def test_blanks_that_see_each_other_have_one_answer(post):
    reply = post("/v1/infill", input="a [MASK] b [MASK]", n=2, **SEARCH)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "n")


def test_values_that_ask_for_no_search_are_taken(post):
    plain = {"use_beam_search": False, "length_penalty": 1.0, "early_stopping": False}
    drawn = {"prompt": "a", "seed": 3}
    replies = [post("/v1/completions", **drawn, **each).json() for each in ({}, plain)]
    assert replies[0]["choices"] == replies[1]["choices"]


def test_no_answer_holds_a_bad_word(post):
    asked = {"prompt": "The list", "temperature": 0, "max_tokens": 30, "ignore_eos": True}
    text = post("/v1/completions", **asked).json()["choices"][0]["text"]
    words = [
        text[start : start + 3] for start in (0, 5, 9) if "\ufffd" not in text[start : start + 3]
    ]
    assert words
    cleaned = post("/v1/completions", **asked, bad_words=words).json()["choices"][0]["text"]
    assert cleaned
    assert not any(word in cleaned for word in words)


@pytest.mark.parametrize("way", [{}, {"use_beam_search": True, "beam_width": 2}])
def test_a_request_that_leaves_no_token_is_at_fault_itself(post, way):
    body = {"guided_choice": ["red", "green"], "bad_words": ["red", "ee"], **way}
    reply = post("/v1/completions", prompt="a", **body)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "no_token_allowed"


def test_a_streamed_request_that_leaves_no_token_says_so(server):
    with pytest.raises(openai.APIError, match="forbidden"):
        list(server.client.completions.create(
            model="tiny/glm", prompt="a", stream=True,
            extra_body={"guided_choice": ["red"], "bad_words": ["d"]},
        ))  # fmt: skip


def test_editors_may_ask_for_a_schema(post):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = post("/infill", input_prefix="a", input_suffix="b", n_predict=40, response_format=form)
    assert isinstance(json.loads(reply.json()["content"])["a"], bool)


def test_the_description_tells_of_searches_and_bad_words(server):
    schemas = server.http.get("/openapi.json").json()["components"]["schemas"]
    for kind in ("CompletionRequest", "ChatRequest", "InfillRequest", "EditorRequest"):
        fields = schemas[kind]["properties"]
        for name in (
            "use_beam_search",
            "beam_width",
            "length_penalty",
            "early_stopping",
            "bad_words",
        ):
            assert fields[name]["description"]
