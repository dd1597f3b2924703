"""Answers of a form: whatever the model would rather say, and whatever is asked for beside it."""

import dataclasses
import json
import sys
from functools import cache

import jsonschema
import numpy as np
import pytest
import regex
import torch
from foreign_tokenizer import save_tokenizer

from glm_dist.errors import RequestError
from glm_dist.inference import Blank, Engine, Failure, SamplingSettings
from glm_dist.inference import constraints as module
from glm_dist.inference.constraints import Constraints
from glm_dist.inference.detokenize import TokenTexts
from glm_dist.tokenizer import Tokenizer, TokenizerSettings, train_tokenizer

TEXTS = ['{"name": "list", "items": [1, 2, 3]}', "大學之道 🦊 naïve", "the list returns items"] * 30
EXPLODING = "((a{0,99}){0,99}){0,99}b"
"""Too much work after some of its characters, and none before."""
SCHEMAS = [
    {"type": "object"},
    {"enum": ["red", 4, None, {"a": [1]}]},
    {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 12}, "maxItems": 4},
    {"type": "string", "maxLength": 5},
    {"type": "string", "pattern": "^[a-f]{2,4}-[0-9]$"},
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "kind": {"const": "list"},
            "size": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/flag"}]},
        },
        "required": ["name", "next"],
        "additionalProperties": False,
        "$defs": {"flag": {"type": "boolean"}},
    },
]


@pytest.fixture(scope="module", params=["sentencepiece", "byte_level"])
def either_tokenizer(request, tmp_path_factory):
    if request.param == "sentencepiece":
        return train_tokenizer(TEXTS, TokenizerSettings(vocab_size=400))
    return Tokenizer.load(save_tokenizer(tmp_path_factory.mktemp("tokenizer"), TEXTS))


@pytest.fixture(scope="module")
def constraints(either_tokenizer):
    """Of a model whose vocabulary is padded."""
    special = either_tokenizer.special
    size = either_tokenizer.vocab_size + 77
    texts = TokenTexts(either_tokenizer)
    return Constraints(either_tokenizer, texts, size, [special.eop, special.eos])


class Walk:
    """A random answer to a constraint: each token any that is allowed."""

    def __init__(self, constraints, tokenizer, sampling, seed, longest=120):
        rng = np.random.default_rng(seed)
        self.matcher = constraints.prepare(sampling).fork()
        self.texts, self.tokens, self.is_ended = TokenTexts(tokenizer), [], False
        ends = {tokenizer.special.eop, tokenizer.special.eos}
        while len(self.tokens) < longest and not self.matcher.is_over:
            allowed = torch.nonzero(constraints.allowed([self.matcher], 1)[0]).flatten().tolist()
            assert allowed, self.text
            assert ends <= set(allowed) or not ends & set(allowed)
            token = int(rng.choice(allowed))
            if token in ends:
                break
            self.tokens.append(token)
            self.matcher.take(token)
        else:
            self.is_ended = self.matcher.is_over
            return
        self.is_ended = True

    @property
    def text(self):
        return self.texts.join(self.tokens)


def walks(constraints, tokenizer, sampling, count=6, longest=120):
    return [Walk(constraints, tokenizer, sampling, seed, longest) for seed in range(count)]


def random_schema(rng, depth=0):
    """A schema of any shape that validates something."""
    kinds = ["integer", "number", "string", "boolean", "null", "enum"]
    kind = rng.choice(kinds if depth > 2 else [*kinds, "array", "object", "anyOf"])
    if kind == "enum":
        return {"enum": [["a", 1, None, True, 2.5, "ü"][i] for i in rng.permutation(6)[:3]]}
    if kind == "integer":
        low = int(rng.integers(-50, 50))
        return {"type": "integer", "minimum": low, "maximum": low + int(rng.integers(100))}
    if kind == "string":
        return {"type": "string", "maxLength": int(rng.integers(1, 6))}
    if kind == "array":
        items = random_schema(rng, depth + 1)
        return {"type": "array", "items": items, "minItems": int(rng.integers(2)), "maxItems": 3}
    if kind == "object":
        names = ["a", "b", "中", 'q"'][: rng.integers(1, 5)]
        return {
            "type": "object",
            "properties": {name: random_schema(rng, depth + 1) for name in names},
            "required": [name for name in names if rng.random() < 0.5],
            "additionalProperties": False,
        }
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
    return {"type": str(kind)}


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_json_of_any_tokens_parses_and_validates(schema, constraints, either_tokenizer):
    found = walks(constraints, either_tokenizer, SamplingSettings(json_schema=json.dumps(schema)))
    ended = [walk.text for walk in found if walk.is_ended]
    assert ended
    for text in ended:
        jsonschema.validate(json.loads(text), schema)


def test_json_of_random_schemas_parses_and_validates(constraints, either_tokenizer):
    rng, count = np.random.default_rng(0), 0
    for _ in range(25):
        schema = random_schema(rng)
        sampling = SamplingSettings(json_schema=json.dumps(schema))
        for walk in walks(constraints, either_tokenizer, sampling, count=2, longest=200):
            if walk.is_ended:
                jsonschema.validate(json.loads(walk.text), schema)
                count += 1
    assert count > 20


@pytest.mark.parametrize(
    "pattern",
    ["[ab]{2,5}c?", "(the|list|items)( (the|list))*", "[\\u4e00-\\u9fff]{2}🦊?", "a|", "é+x"],
)
def test_a_regex_allows_exactly_what_can_still_match(pattern, constraints, either_tokenizer):
    texts, special = TokenTexts(either_tokenizer), either_tokenizer.special
    walk_texts = set()
    sampling = SamplingSettings(regex=pattern)
    for walk in walks(constraints, either_tokenizer, sampling, count=12, longest=12):
        assert regex.fullmatch(pattern, walk.text, partial=not walk.is_ended)
        walk_texts.add(walk.text)
        state = constraints.prepare(sampling).fork()
        for place, token in enumerate([*walk.tokens, None]):
            begun = texts.join(walk.tokens[:place])
            allowed = constraints.allowed([state], 1)[0]
            if "\ufffd" not in begun:
                assert bool(allowed[special.eop]) is bool(regex.fullmatch(pattern, begun))
                for other in torch.nonzero(allowed).flatten().tolist():
                    longer = begun + texts.join([other]).rstrip("\ufffd")
                    assert regex.fullmatch(pattern, longer, partial=True)
            if token is not None:
                state.take(token)
    assert len(walk_texts) > 1


def test_a_grammar_may_be_written_as_lark_and_as_ebnf(constraints, either_tokenizer):
    lark = 'start: "(" start ")" | /[xy]/'
    ebnf = 'root ::= "(" root ")" | [xy]'
    for grammar in (lark, ebnf):
        found = walks(constraints, either_tokenizer, SamplingSettings(grammar=grammar), count=30)
        texts = {walk.text for walk in found if walk.is_ended}
        assert {"x", "y"} <= texts
        assert all(regex.fullmatch(r"(\((?1)\)|[xy])", text) for text in texts)
        assert any("(" in text for text in texts)


def test_choices_are_spelt_as_they_are_encoded(constraints, either_tokenizer):
    choices = ("a", "a list", "items")
    found = walks(constraints, either_tokenizer, SamplingSettings(choices=choices), count=30)
    assert {walk.text for walk in found} == set(choices)
    encoded = {tuple(either_tokenizer.encode(choice).tolist()) for choice in choices}
    assert {tuple(walk.tokens) for walk in found} == encoded


def test_ids_without_a_text_are_never_allowed(constraints, either_tokenizer):
    special = either_tokenizer.special
    state = constraints.prepare(SamplingSettings(regex="(?s:.*)")).fork()
    allowed = constraints.allowed([state, None], 2)
    ends = [special.eop, special.eos]
    roles = np.setdiff1d(either_tokenizer.special_ids, [*ends, -1])
    assert not allowed[0, roles].any()
    assert not allowed[0, either_tokenizer.vocab_size :].any()
    assert allowed[0, ends].all()
    assert allowed[1].all()


BAD = [
    ("regex", "(unclosed"),
    ("regex", "(a{1000}){1000}"),
    ("regex", "(?=a)b"),
    ("regex", "a" * 5000),
    ("json_schema", "{"),
    ("json_schema", "[]"),
    ("json_schema", '{"type": "strang"}'),
    ("json_schema", '{"type": "string", "pattern": "(unclosed"}'),
    ("json_schema", '{"not": {"type": "string"}}'),
    ("json_schema", '{"type": "string", "format": "of my own"}'),
    ("json_schema", '{"$ref": "https://example.com/schema"}'),
    ("json_schema", '{"items":' * 40 + "{}" + "}" * 40),
    ("json_schema", json.dumps({"enum": ["x" * 70_000]})),
    ("json_schema", '{"x-guidance": {"lenient": true}, "not": {}}'),
    ("grammar", "start: other"),
    ("grammar", "start: ("),
    ("grammar", "start: start"),
    ("grammar", "root ::= other"),
    ("choices", ("x" * 70_000,)),
]


@pytest.mark.parametrize(("kind", "source"), BAD, ids=range(len(BAD)))
def test_what_is_no_constraint_or_too_much_work_is_refused(kind, source, constraints):
    with pytest.raises(RequestError) as error:
        constraints.prepare(SamplingSettings(**{kind: source}))
    assert error.value.param == kind
    assert len(str(error.value)) < 1000


def test_without_the_library_only_choices_are_possible(monkeypatch, either_tokenizer, constraints):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"pip install .*\[constraints\]") as error:
        constraints.prepare(SamplingSettings(regex="never seen before"))
    assert error.value.param == "regex"
    assert constraints.prepare(SamplingSettings(choices=("never", "seen"))) is not None


def test_compiled_ones_are_kept_while_there_is_room(monkeypatch, constraints):
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    first = SamplingSettings(regex="first")
    kept = constraints.prepare(first)
    for number in range(5):
        constraints.prepare(SamplingSettings(regex=f"other {number}"))
        constraints.prepare(first)
    assert constraints.prepare(first) is kept
    for number in range(3):
        constraints.prepare(SamplingSettings(regex=f"another {number}"))
    assert constraints.prepare(first) is not kept


@pytest.fixture(scope="module")
def engine_of(tokenizer, make_model):
    """One engine a family, of a model that never learnt anything."""
    return cache(lambda family: Engine(make_model(family), tokenizer))


@pytest.fixture
def ask(engine_of, make_request, collect):
    """(text, reason) of each blank and sample."""

    def answer(text, *samplings, family="ours", **changes):
        request = make_request(text, **changes)
        blanks = [
            Blank(blank.place, each) for blank, each in zip(request.blanks, samplings, strict=True)
        ]
        request = dataclasses.replace(request, blanks=blanks)
        answers = collect(engine_of(family).generate([request]))
        return [(found[2], found[4][0][0]) for _, found in sorted(answers.items())]

    return answer


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_an_untrained_model_answers_in_json_of_the_schema(schema, ask):
    check_answers(schema, ask, "ours")


def test_models_of_every_family_answer_in_json_of_a_schema(family, ask):
    check_answers(SCHEMAS[-1], ask, family)


def check_answers(schema, ask, family):
    greedy = SamplingSettings(json_schema=json.dumps(schema), max_tokens=90)
    drawn = greedy.model_copy(update={"temperature": 1.0, "seed": 1})
    answers = ask("the [MASK]", greedy, family=family)
    answers += ask("the [MASK]", drawn, family=family, num_samples=4)
    ended = [text for text, reason in answers if reason == "stop"]
    assert ended or "properties" not in schema
    for text in ended:
        jsonschema.validate(json.loads(text), schema)


def test_an_answer_that_is_cut_off_can_still_be_completed(ask):
    pattern = "(the|list|items)( (the|list|items)){30}"
    for max_tokens in range(1, 9):
        sampling = SamplingSettings(regex=pattern, max_tokens=max_tokens, temperature=2.0)
        [(text, reason)] = ask("[MASK]", sampling)
        assert reason == "length"
        assert regex.fullmatch(pattern, text, partial=True)


def test_each_blank_has_a_constraint_of_its_own(ask):
    samplings = [
        SamplingSettings(regex="[0-9]{3}"),
        SamplingSettings(choices=("red", "green")),
        SamplingSettings(max_tokens=5, ignore_eos=True),
        SamplingSettings(json_schema='{"type": "boolean"}'),
    ]
    for is_joint in (True, False):
        answers = ask("a [MASK] b [MASK] c [MASK] d [MASK]", *samplings, is_joint=is_joint)
        assert [reason for _, reason in answers] == ["stop", "stop", "length", "stop"]
        texts = [text for text, _ in answers]
        assert regex.fullmatch("[0-9]{3}", texts[0])
        assert texts[1] in ("red", "green")
        assert texts[3] in ("true", "false")


def test_a_constraint_that_turns_out_too_much_fails_alone(
    tokenizer, make_model, make_request, random_requests, collect
):
    model = make_model("ours")
    others = random_requests(np.random.default_rng(3), 6)
    expected = collect(Engine(model, tokenizer).generate(others))
    sampling = SamplingSettings(
        regex=EXPLODING, max_tokens=200, logit_bias={int(tokenizer.encode("a")[-1]): 9.0}
    )
    engine = Engine(model, tokenizer)
    outputs = engine.generate([make_request("[MASK]", "too much", sampling), *others])
    [failure] = [output for output in outputs if isinstance(output, Failure)]
    assert (failure.request_id, failure.code) == ("too much", "constraint_too_complex")
    assert collect([each for each in outputs if each.request_id != "too much"]) == expected
    assert engine.stats.free_blocks == engine.stats.total_blocks
