"""The table of tasks: figures of arms, merged over tasks, as a page that people read."""

import json

import pytest

from glm_dist.evaluate.results import entries_of, entry_of, publish_entry
from glm_dist.evaluate.score import gain
from glm_dist.evaluate.scores import accuracy
from glm_dist.evaluate.task_report import read_answers, write_answers
from glm_dist.tasks import TASKS, Answer, build_task
from glm_dist.tasks.examples import Example
from glm_dist.tasks.mixture import MixtureSettings, named

GOLDS = ["good", "bad"] * 20
ORIGIN = {
    "date": "2026-01-02",
    "command": "python jobs/results.py",
    "commit": "0",
    "versions": {},
    "hardware": {"processor": "one", "cores": 2, "memory_gib": 1, "gpus": []},
}


@pytest.fixture(scope="module")
def examples():
    return [
        Example({"text": f"text {n}\u2028more", "label": one}, "") for n, one in enumerate(GOLDS)
    ]


@pytest.fixture(scope="module")
def task(examples):
    return build_task(
        TASKS["classification"].complete(TASKS["classification"].Settings(), examples)
    )


def wrong_at(*places):
    other = {"good": "bad", "bad": "good"}
    values = [other[gold] if n in places else gold for n, gold in enumerate(GOLDS)]
    return [Answer(value, (0.25, 0.75)) for value in values]


@pytest.fixture(scope="module")
def entry(task, examples):
    return entry_of(
        task,
        examples,
        {
            "majority": [[Answer("good")] * 40],
            "scratch": [wrong_at(*range(8)), wrong_at(*range(4))],
            "glm": [wrong_at(0, 1), wrong_at(39)],
        },
    )


def test_an_entry_has_the_mean_over_seeds_and_each_arm_under_its_name(entry):
    assert entry["score"] == pytest.approx(100 * (38 + 39) / 80)
    assert entry["scratch"] == pytest.approx(85)
    assert entry["majority"] == pytest.approx(50)
    assert entry["arms"]["glm"]["seeds"] == pytest.approx([95, 97.5])
    assert set(entry["arms"]["glm"]["scores"]) == {"accuracy", "macro F1"}


def test_a_mixture_has_an_entry_for_each_of_its_tasks(task, examples, entry):
    asked = MixtureSettings(tasks={"mood": {"kind": "classification"}, "tone": task.settings})
    theirs = [named(name, one) for name in ("mood", "tone") for one in examples]
    mixture = build_task(TASKS["mixture"].complete(asked, theirs))
    answers = {
        "scratch": [wrong_at(0) + wrong_at(*range(8)), wrong_at() + wrong_at(*range(4))],
        "glm": [wrong_at() + wrong_at(0, 1), wrong_at() + wrong_at(39)],
    }
    found = entries_of("both", mixture, theirs, answers, ["lead"])
    assert found.keys() == {"both_mood", "both_tone"}
    assert found["both_mood"]["score"] == pytest.approx(100)
    assert found["both_tone"]["arms"]["glm"] == entry["arms"]["glm"]
    assert found["both_tone"]["gains"]["scratch"] == entry["gains"]["scratch"]
    assert found["both_mood"]["not_run"] == found["both_tone"]["not_run"] == ["lead"]


def test_an_arm_that_was_not_run_is_said_to_be_so_and_has_no_figure(
    task, examples, entry, tmp_path
):
    answers = {"majority": [[Answer("good")] * 40], "tfidf": [wrong_at(1)]}
    part = entry_of(task, examples, answers, ["scratch", "glm"])
    assert (part["score"], part["interval"], part["scratch"]) == (None, None, None)
    assert (part["tfidf"], part["gains"]) == (pytest.approx(97.5), {})
    publish_entry(tmp_path, "en_part", {**part, "told": {}}, ORIGIN)
    text = publish_entry(tmp_path, "en_whole", {**entry, "told": {}}, ORIGIN).read_text()
    row = next(line for line in text.splitlines() if line.startswith("| en_part |"))
    assert row.count("not run") == 3
    row = next(line for line in text.splitlines() if line.startswith("| en_whole |"))
    assert row.count("not run") == 0
    assert row.count("–") == 1


def test_a_gain_is_paired_on_examples_and_drawn_over_seeds(entry):
    ours = [accuracy(GOLDS, [one.value for one in wrong_at(*at)]) for at in ((0, 1), (39,))]
    theirs = [accuracy(GOLDS, [one.value for one in wrong_at(*range(n))]) for n in (8, 4)]
    value, low, high = gain(ours, theirs)
    assert entry["gains"]["scratch"] == {"score": value, "interval": [low, high]}
    assert "glm" not in entry["gains"]


def test_tasks_are_merged_into_one_table_and_a_second_run_takes_the_place_of_the_first(
    entry, tmp_path
):
    entry = {**entry, "told": {}}
    publish_entry(tmp_path, "en_one", entry, ORIGIN)
    publish_entry(tmp_path, "zh_two", {**entry, "told": {"Base": "abc"}}, ORIGIN)
    page = publish_entry(tmp_path, "en_one", {**entry, "score": 1.0}, ORIGIN)
    kept = json.loads((tmp_path / "tasks.json").read_text())
    assert set(kept) == {"en_one", "zh_two", "origin"}
    assert kept["en_one"]["score"] == 1.0
    text = page.read_text()
    low, high = entry["gains"]["scratch"]["interval"]
    assert text.count(f"| +11.2 ({low:+.1f} to {high:+.1f}) |") == 2
    assert "Base: abc" in text
    picture = (tmp_path / "tasks-arms.svg").read_text()
    assert "zh_two" in picture
    assert "same, from random weights" in picture
    assert "(tasks-arms.svg)" in text


def test_answers_are_read_back_as_they_were_written(task, examples, tmp_path):
    answers = wrong_at(3)
    write_answers(tmp_path, task, examples, answers, {})
    assert read_answers(tmp_path) == answers
