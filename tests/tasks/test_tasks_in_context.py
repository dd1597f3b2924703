"""Worked examples before the question: which, in what order, and only as far as they fit."""

import pytest

from glm_dist.tasks import Binding
from glm_dist.tasks.examples import Example
from glm_dist.tasks.in_context import InContext, draw_shown

MADE = [
    {"text": f"{'really great' if number % 2 else 'bad'} film {'one man ' * number}".strip()}
    | {"label": "yes" if number % 2 else "no"}
    for number in range(8)
]
SETTINGS = {"verbalizers": {"yes": "good", "no": "bad"}, "patterns": ["{text} it was [MASK]"]}


@pytest.fixture
def make(make_task):
    def make(max_tokens=400, seed=0, **changes):
        settings = {**SETTINGS, "in_context": 2, **changes}
        task, examples = make_task("classification", MADE, **settings)
        shown = draw_shown(task.settings, examples, seed)
        return InContext(task.settings, Binding(task.tokenizer, max_tokens), shown), task, examples

    return make


def test_every_label_is_shown_as_often_and_the_seed_decides_which(make):
    task, _, examples = make()
    labels = [one.text("label") for one in task.shown_examples]
    assert [sorted(labels[:2]), sorted(labels[2:])] == [["no", "yes"]] * 2
    drawn = [draw_shown(task.settings, examples, seed) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len({str(one) for one in drawn}) > 1
    many, _, _ = make(in_context=9)
    assert len(many.shown_examples) == len(MADE)


def test_a_prompt_is_the_plain_one_behind_answered_examples(make):
    task, plain, _ = make()
    question = Example({"text": "how are you"}, "line 1")
    (found,), (without,) = task.questions(question), plain.questions(question)
    special = task.tokenizer.special
    tokens = found.tokens.tolist()
    assert tokens[0] == special.enc
    assert tokens[-len(without.tokens) + 1 :] == without.tokens[1:].tolist()
    assert tokens.count(special.mask) == 1
    assert found.places == (tokens.index(special.mask),)
    assert [one.tolist() for one in found.options] == [one.tolist() for one in without.options]
    text = task.tokenizer.decode(found.tokens)
    words = {"yes": "good", "no": "bad"}
    ends = [f"{one.text('text')} it was {words[one.text('label')]}" for one in task.shown_examples]
    places = [text.index(end) for end in ends]
    assert places == sorted(places)
    assert (task.num_questions, task.num_shown, task.num_dropped) == (1, 4, 0)


def test_what_does_not_fit_is_left_out_whole_and_counted(make):
    full, plain, _ = make()
    question = Example({"text": "how are you"}, "line 1")
    sizes = len(full.questions(question)[0].tokens), len(plain.questions(question)[0].tokens)
    for max_tokens in range(sizes[1] + 4, sizes[0] + 6):
        task, _, _ = make(max_tokens)
        (found,) = task.questions(question)
        assert len(found.tokens) < max_tokens
        assert task.num_shown + task.num_dropped == 4
        assert task.tokenizer.decode(found.tokens).count("it was") == task.num_shown + 1
    assert task.num_dropped == 0
    tight, _, _ = make(sizes[1] + 4)
    tight.questions(question)
    assert tight.num_dropped == 4


def test_a_text_is_never_its_own_example(make):
    task, _, _ = make()
    (asked, *_) = task.shown_examples
    (found,) = task.questions(asked)
    assert task.num_shown == 3
    assert task.tokenizer.decode(found.tokens).count(f"{asked.text('text')} it was") == 1


def test_a_head_has_no_examples_in_its_context(make):
    with pytest.raises(ValueError, match="in_context: a head reads one text"):
        make(method="head", patterns=[], verbalizers={})
