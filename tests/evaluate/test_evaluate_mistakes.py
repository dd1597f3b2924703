"""Calibration, tables and pictures show what the predictions are."""

import numpy as np
import pytest

from glm_dist.evaluate.calibration import (
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from glm_dist.evaluate.mistakes import confusion, per_class, per_length, worst_errors
from glm_dist.evaluate.pictures import draw_confusion, draw_reliability


@pytest.fixture(scope="module")
def overconfident():
    """Probabilities whose logits are three times too large, and the labels they are for."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3))
    honest = apply_temperature(np.exp(logits), 1.0)
    labels = (rng.random((4000, 1)) > honest.cumsum(axis=1)).sum(axis=1)
    return apply_temperature(honest, 1 / 3), labels, honest


def test_the_fitted_temperature_undoes_overconfidence(overconfident):
    probabilities, labels, honest = overconfident
    temperature = fit_temperature(probabilities, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    before = expected_calibration_error(reliability(probabilities, labels))
    after = expected_calibration_error(
        reliability(apply_temperature(probabilities, temperature), labels)
    )
    assert before > 15
    assert after < 3
    assert apply_temperature(probabilities, 3) == pytest.approx(honest, abs=1e-6)


def test_calibration_error_is_the_weighted_distance():
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 6)
    bins = reliability(probabilities, [0, 0, 0, 1] + [1] * 6)
    assert [(round(one.confidence, 3), one.accuracy, one.num_examples) for one in bins] == [
        (0.6, 1.0, 6),
        (0.9, 0.75, 4),
    ]
    assert expected_calibration_error(bins) == pytest.approx(40 * 0.6 + 15 * 0.4)


def test_tables_by_class_and_by_length():
    right, said = ["好", "好", "坏", "坏"], ["好", "坏", "坏", "坏"]
    good, bad = per_class(right, said, ["好", "坏"])
    assert (good.precision, good.recall, good.num_examples) == (100, 50, 2)
    assert bad.f1 == pytest.approx(80)
    assert confusion(right, said, ["好", "坏"]).tolist() == [[1, 1], [0, 2]]
    rows = per_length([1, 2, 3, 4, 5, 6, 7, 8], [1, 1, 1, 1, 0, 0, 0, 0], num_ranges=2)
    assert [(row.shortest, row.longest, row.value, row.num_examples) for row in rows] == [
        (1, 4, 1, 4),
        (5, 8, 0, 4),
    ]
    assert [row.num_examples for row in per_length([5] * 7, [1] * 7)] == [7]


def test_the_surest_mistakes_come_first():
    found = worst_errors("abcd", "xxyy", "xyxy", [0.9, 0.5, 0.8, 0.7], count=5)
    assert [(one.text, one.confidence) for one in found] == [("c", 0.8), ("b", 0.5)]


def test_pictures_hold_their_labels_as_text_and_come_out_alike(tmp_path, recwarn):
    table = np.array([[8, 2], [1, 9]])
    for name in ("one.svg", "two.svg"):
        draw_confusion(tmp_path / name, table, ["体育", "财经"], "zh_thucnews")
    picture = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert ">体育<" in picture
    assert picture == (tmp_path / "two.svg").read_text(encoding="utf-8")
    bins = reliability(np.array([[0.9, 0.1], [0.4, 0.6]]), [0, 1])
    draw_reliability(tmp_path / "reliability.svg", {"as it is": bins}, "reliability")
    assert "as it is: ECE" in (tmp_path / "reliability.svg").read_text(encoding="utf-8")
    assert [str(one.message) for one in recwarn if "Glyph" in str(one.message)] == []
