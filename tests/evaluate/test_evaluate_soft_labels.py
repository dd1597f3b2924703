"""What an ensemble makes of its members' probabilities, against torch."""

import numpy as np
import pytest
import torch

from glm_dist.evaluate.soft_labels import (
    answers_of,
    soft_labels,
    softly_labelled,
    surely_labelled,
)
from glm_dist.tasks.examples import Example

LABELS = ["a", "b", "c"]


@pytest.fixture
def scores():
    return torch.randn(4, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_scores_are_averaged_by_weights_and_softened(scores):
    weights = torch.tensor([0.5, 0.2, 0.0, 0.9], dtype=torch.float64)
    mean = (weights[:, None, None] * scores).sum(0) / weights.sum()
    found = soft_labels(scores.softmax(-1).numpy(), weights.tolist(), 2.0)
    np.testing.assert_allclose(found, (mean / 2).softmax(-1).numpy())


def test_members_that_all_know_nothing_count_alike(scores):
    chances = scores.softmax(-1).numpy()
    np.testing.assert_allclose(soft_labels(chances, [0] * 4, 1), soft_labels(chances, [1] * 4, 1))


def test_a_label_that_a_member_rules_out_leaves_numbers():
    chances = np.array([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
    found = soft_labels(chances, [1, 1], 1.0)
    assert found.sum() == pytest.approx(1)
    assert answers_of(found, LABELS)[0].value in "ab"


def test_examples_carry_what_is_to_be_learnt_of_them():
    texts = [Example({"text": "x", "label": "c"}, "line 1"), Example({"text": "y"}, "line 2")]
    soft = softly_labelled(texts, np.array([[0.2, 0.7, 0.1], [0.5, 0.2, 0.3]]), LABELS)
    assert [one.text("label") for one in soft] == ["b", "a"]
    assert soft[0].fields["shares"] == [0.2, 0.7, 0.1]
    (sure,) = surely_labelled(texts[:1], LABELS)
    assert (sure.text("label"), sure.fields["shares"]) == ("c", [0.0, 0.0, 1.0])
