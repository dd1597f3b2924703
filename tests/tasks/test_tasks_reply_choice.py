"""Replies to choose from: where they come from, what is asked, and how they are put in order."""

import numpy as np
import pytest

from glm_dist.evaluate.baselines import BaselineSettings, answer_by, arms_of
from glm_dist.evaluate.task_report import score_answers
from glm_dist.tasks import Answer, Reply
from glm_dist.tasks.examples import Example
from glm_dist.tasks.reply_choice import ReplyChoice, ReplyChoiceSettings

SIX = ReplyChoiceSettings(num_candidates=6)
THINGS = "film story man dog town".split()


def dialogue(number, turns=3):
    """Each answer names the thing that was asked about."""
    messages = []
    for turn in range(turns):
        thing = THINGS[(number + turn) % len(THINGS)]
        messages.append({"role": "usr", "content": f"is the {thing} {number} good"})
        messages.append({"role": "sys", "content": f"the {thing} {number} is good"})
    return Example({"messages": messages}, f"dialogue {number}")


@pytest.fixture
def examples():
    return ReplyChoice.relate(SIX, [dialogue(number) for number in range(12)])


def test_one_turn_of_each_is_asked_about_beside_replies_out_of_others(make_task, examples):
    task, _ = make_task("reply_choice", [])
    asked = set()
    for example in examples:
        candidates, right = example.fields["candidates"], task.gold(example)
        own = {turn.text for turn in task.turns(example)}
        assert len(set(candidates)) == 6
        assert own.intersection(candidates) == {right}
        turns = task.before(example)
        assert turns[-1].role == "user"
        assert turns[-1].text == right.replace("the", "is the", 1).replace(" is good", " good")
        asked.add(example.fields["asked"])
    assert asked == {0, 1, 2}
    places = {one.fields["candidates"].index(task.gold(one)) for one in examples}
    assert len(places) > 2


def test_the_same_dialogues_have_the_same_candidates_wherever_they_lie(examples):
    moved = [Example(dialogue(number).fields, "elsewhere") for number in range(12)]
    again = ReplyChoice.relate(SIX, moved)
    assert [one.fields for one in again] == [one.fields for one in examples]


def test_candidates_of_the_data_stay_and_its_last_answer_is_the_right_one(make_task):
    fields = {**dialogue(0).fields, "candidates": ["good", "the man 0 is good"]}
    (example,) = ReplyChoice.relate(SIX, [Example(fields, "line 1")])
    task, _ = make_task("reply_choice", [])
    assert example.fields == fields
    assert task.gold(example) == "the man 0 is good"
    assert task.problems(example) == []
    wrong = Example({**fields, "candidates": ["good", "bad"]}, "line 1")
    assert "none of the candidates" in task.problems(wrong)[0]
    alone = ReplyChoice.relate(SIX, [dialogue(0)])
    assert "no two replies" in task.problems(alone[0])[0]


def test_every_answer_is_learnt_and_the_likeliest_per_token_comes_first(make_task, examples):
    task, _ = make_task("reply_choice", [])
    assert len(task.training_samples(examples[0])) == 3
    (question,) = task.questions(examples[0])
    lengths = np.array([len(option) + 1 for option in question.options])
    means = np.array([-3.0, -1.0, -2.0, -6.0, -5.0, -4.0])
    answer = task.answer(examples[0], [Reply(scores=(means * lengths)[None])])
    candidates = examples[0].fields["candidates"]
    assert answer.value == [candidates[number] for number in (1, 2, 0, 5, 4, 3)]


def test_a_model_may_read_the_last_turn_alone(make_task, examples):
    task, _ = make_task("reply_choice", [])
    last, _ = make_task("reply_choice", [], num_turns=1)
    example = next(one for one in examples if one.fields["asked"])
    assert len(task.before(example)) > 1
    assert last.before(example) == task.before(example)[-1:]
    assert last.gold(example) == task.gold(example)
    assert len(last.questions(example)[0].tokens) < len(task.questions(example)[0].tokens)


def test_recall_is_where_the_right_one_stands(make_task, examples):
    task, _ = make_task("reply_choice", [])
    ranked = []
    for number, example in enumerate(examples):
        others = [one for one in example.fields["candidates"] if one != task.gold(example)]
        others.insert(number % 4, task.gold(example))
        ranked.append(Answer(others))
    scores = {one.name: one.value for one in score_answers(task, examples, ranked)}
    assert scores == {"recall@1": 25, "recall@2": 50, "recall@5": 100}


def test_tf_idf_finds_the_reply_that_names_what_was_asked_about(make_task, examples):
    task, _ = make_task("reply_choice", [])
    settings = BaselineSettings()
    splits = {"train": examples, "validation": examples[:6], "test": examples[6:]}
    found = {
        name: score_answers(task, examples[6:], answer_by(arm, task, splits, settings)[1])[0].value
        for name, arm in arms_of(task, settings).items()
    }
    assert found["tfidf"] == 100
    assert found["majority"] < 60
