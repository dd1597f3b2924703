"""Scores of sets of labels against scikit-learn, and thresholds against trying them all."""

import numpy as np
import pytest
from answer_scenarios import tuned
from finetune_scenarios import small_tokenizer
from sklearn import metrics

from glm_dist.evaluate.label_sets import (
    best_threshold,
    per_label,
    set_scores,
    tune_thresholds,
    with_thresholds,
)
from glm_dist.evaluate.score import interval
from glm_dist.tasks import Answer, load_task
from glm_dist.tasks.multi_label import MultiLabelSettings

LABELS = ["a", "b", "c", "d"]


def sets_of(table):
    return [[label for label, there in zip(LABELS, row, strict=True) if there] for row in table]


@pytest.fixture
def drawn():
    rng = np.random.default_rng(3)
    truths = (rng.random((60, 4)) < [0.5, 0.2, 0.05, 0.0]).astype(float)
    chances = np.clip(0.4 * truths + 0.6 * rng.random((60, 4)), 0, 1)
    return truths, chances


def test_scores_are_those_of_scikit_learn(drawn):
    truths, chances = drawn
    given = (chances > 0.5).astype(float)
    found = {one.name: one for one in set_scores(sets_of(truths), sets_of(given), LABELS)}
    for average in ("micro", "macro"):
        expected = metrics.f1_score(truths, given, average=average, zero_division=0)
        score = found[f"{average} F1"]
        assert score.value == pytest.approx(100 * expected)
        assert score.combine(score.statistics.sum(0, keepdims=True)) == pytest.approx(score.value)
    assert found["subset accuracy"].value == pytest.approx(
        100 * metrics.accuracy_score(truths, given)
    )
    assert all(interval([one]).low <= one.value <= interval([one]).high for one in found.values())
    columns = metrics.precision_recall_fscore_support(truths, given, zero_division=0)
    for number, row in enumerate(per_label(sets_of(truths), sets_of(given), LABELS)):
        assert row[1:4] == pytest.approx([100 * column[number] for column in columns[:3]])
        assert row.num_examples == columns[3][number]


def test_a_threshold_is_the_best_of_all_and_far_from_both_neighbours(drawn):
    truths, chances = drawn
    for number in (0, 1, 2):
        found = best_threshold(chances[:, number], truths[:, number])
        tried = [
            metrics.f1_score(truths[:, number], chances[:, number] >= one)
            for one in [0.0, *chances[:, number]]
        ]
        given = chances[:, number] >= found
        assert metrics.f1_score(truths[:, number], given) == pytest.approx(max(tried))
        assert np.abs(chances[:, number] - found).min() > 0
    assert best_threshold(chances[:, 3], truths[:, 3]) == 0.5
    assert best_threshold(np.array([0.7, 0.7, 0.7]), np.array([1, 0, 0])) == pytest.approx(0.35)


def test_one_threshold_is_shared_or_each_label_has_its_own(drawn):
    truths, chances = drawn

    def tuned_by(how):
        return with_thresholds(MultiLabelSettings(labels=LABELS, tuned=how), chances, truths)

    assert tuned_by("none").threshold == 0.5
    shared, each = tuned_by("shared"), tuned_by("each")
    assert shared.threshold == best_threshold(chances.ravel(), truths.ravel())
    assert not shared.thresholds
    assert set(each.thresholds) == {"a", "b", "c"}
    assert each.thresholds["b"] == best_threshold(chances[:, 1], truths[:, 1])


def test_thresholds_stay_with_the_model(tmp_path):
    tokenizer = small_tokenizer()
    _, task, examples = tuned("multi_label", tokenizer)
    answers = [Answer([], (0.1, 0.3, 0.2))] * len(examples)
    found = tune_thresholds(tmp_path, task, answers, [["y"]] * len(examples))
    assert found.settings.threshold == pytest.approx(0.25)
    again = load_task(tmp_path, tokenizer)
    assert again.settings.threshold == found.settings.threshold
    assert again.decide(answers[0].probabilities).value == ["y"]
