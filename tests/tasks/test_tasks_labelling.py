"""Tags: whole spans whatever the scores, sentences longer than a row, words and Han characters."""

import itertools

import numpy as np
import pytest

from glm_dist.tasks import Reply
from glm_dist.tasks.examples import Example
from glm_dist.tasks.labelling import Span, find_spans

BIO = [
    {"tokens": ["the", "film", "in", "town"], "tags": ["O", "O", "O", "B-LOC"]},
    {"tokens": ["one", "man"], "tags": ["B-PER", "I-PER"]},
]
BMES = [{"tokens": list("北京的天气"), "tags": ["B-LOC", "E-LOC", "O", "B-X", "E-X"]}]
PARTS_OF_SPEECH = [{"tokens": ["the", "film"], "tags": ["DET", "NOUN"]}]


def scores_of(task, tags):
    """Scores that make each tag the likeliest by itself."""
    return np.log(np.eye(len(task.labels))[[task.labels.index(tag) for tag in tags]] + 0.1)


@pytest.mark.parametrize("examples", [BIO, BMES, PARTS_OF_SPEECH])
def test_a_right_reply_is_the_gold_answer_and_tags_lie_at_first_pieces(make_task, examples):
    task, shown = make_task("labelling", examples)
    for example in shown:
        (sample,) = (one.sample for one in task.training_samples(example))
        (question,) = task.questions(example)
        assert sample.tokens.tolist() == question.tokens.tolist()
        assert np.flatnonzero(sample.loss_mask).tolist() == list(question.places)
        tags = [task.labels[number] for number in sample.targets[sample.loss_mask > 0]]
        assert tags == task.gold(example)
        firsts = [
            task.tokenizer.decode(question.tokens[a:b])
            for a, b in itertools.pairwise([*question.places, len(question.tokens)])
        ]
        assert [text.strip() for text in firsts] == example.fields["tokens"]
        assert task.answer(example, [Reply(scores=scores_of(task, tags))]).value == tags


@pytest.mark.parametrize("examples", [BIO, BMES])
def test_the_best_allowed_tags_are_found(make_task, examples):
    """Viterbi against the search through all sequences, on scores that break spans."""
    task, _ = make_task("labelling", examples)
    rng, count = np.random.default_rng(0), len(task.labels)
    for _ in range(20):
        scores = rng.normal(size=(4, count))
        table = task.transitions

        def total(tags, scores=scores, table=table):
            steps = [count, *tags, count]
            moves = sum(table[a, b] for a, b in itertools.pairwise(steps) if (a, b) != (count,) * 2)
            return moves + sum(scores[place, tag] for place, tag in enumerate(tags))

        best = max(itertools.product(range(count), repeat=4), key=total)
        assert task.decode(scores).tolist() == list(best)


def test_spans_are_whole_where_single_tags_would_not_be(make_task):
    task, (example,) = make_task("labelling", BMES)
    broken = scores_of(task, ["E-LOC", "E-LOC", "O", "B-LOC", "E-X"])
    tags = task.answer(example, [Reply(scores=broken)]).value
    spans = find_spans(tags)
    assert all(tags[one.start][0] in "BS" and tags[one.end - 1][0] in "ES" for one in spans)
    free, _ = make_task("labelling", BMES, constrained=False)
    assert free.answer(example, [Reply(scores=broken)]).value[0] == "E-LOC"


def test_every_kind_of_span_has_all_letters_of_the_scheme(make_task):
    task, _ = make_task("labelling", BIO)
    assert task.labels == ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]
    assert task.problems(Example({"tokens": ["a"], "tags": ["I-LOC"]}, "")) == []
    (problem,) = task.problems(Example({"tokens": ["a"], "tags": ["B-ORG"]}, ""))
    assert "'B-ORG' is none that training has seen" in problem
    (problem,) = task.problems(Example({"tokens": ["a", "dog"], "tags": ["O"]}, ""))
    assert "2 tokens and 1 tags" in problem


def test_a_sentence_longer_than_a_row_is_labelled_in_parts(make_task):
    task, _ = make_task("labelling", BIO, max_tokens=24)
    tokens = ["the", "film", "in", "town", "unheard-of"] * 12
    tags = ["O", "O", "O", "B-LOC", "O"] * 12
    long = Example({"tokens": tokens, "tags": tags}, "line 1")
    questions, samples = task.questions(long), task.training_samples(long)
    assert len(questions) == len(samples) > 1
    assert all(len(question.tokens) <= 24 for question in questions)
    assert sum(len(question.places) for question in questions) == len(tokens)
    learnt = [
        task.labels[n] for one in samples for n in one.sample.targets[one.sample.loss_mask > 0]
    ]
    assert learnt == tags
    parts, done = [], 0
    for question in questions:
        parts.append(Reply(scores=scores_of(task, tags[done : done + len(question.places)])))
        done += len(question.places)
    assert task.answer(long, parts).value == tags


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        (["B-A", "I-A", "O", "B-A"], [Span(0, 2, "A"), Span(3, 4, "A")]),
        (["B-A", "B-A", "I-B"], [Span(0, 1, "A"), Span(1, 2, "A"), Span(2, 3, "B")]),
        (["B-A", "M-A", "E-A", "S-B"], [Span(0, 3, "A"), Span(3, 4, "B")]),
        (["O", "O"], []),
    ],
)
def test_tags_spell_spans(tags, spans):
    assert find_spans(tags) == spans
