"""Ways beside each other: figures that add up, gains of the first way, a page of all."""

import json

import numpy as np
import pytest

from glm_dist.evaluate.comparison import compared, page_of, publish_comparison
from glm_dist.evaluate.scores import accuracy


def scores_of(share, seeds=(1, 2, 3), count=200):
    """Accuracies of answers of which such a share is right, over the same examples."""
    draws = [np.random.default_rng(seed).random(count) < share for seed in seeds]
    return [accuracy(["a"] * count, np.where(drawn, "a", "b").tolist()) for drawn in draws]


@pytest.fixture
def rows():
    ways = {"cloze": scores_of(0.9), "head": scores_of(0.6)}
    same = {"cloze": scores_of(0.7), "head": scores_of(0.7)}
    return [compared("sst", "16 a class", 200, ways), compared("sst", "all", 200, same)]


def test_means_spreads_and_gains_are_those_of_the_seeds(rows):
    few, every = rows
    values = [score.value for score in scores_of(0.9)]
    assert few["ways"]["cloze"]["score"] == pytest.approx(np.mean(values))
    assert few["ways"]["cloze"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    low, high = few["gains"]["head"]["interval"]
    assert 0 < low < few["gains"]["head"]["score"] < high
    assert every["gains"]["head"]["score"] == pytest.approx(0)
    assert every["gains"]["head"]["interval"][0] <= 0 <= every["gains"]["head"]["interval"][1]


def test_the_page_holds_each_task_at_each_size(rows, tmp_path):
    text = page_of("Which?", rows)
    assert "| sst | 16 a class | accuracy | 200 |" in text
    assert "cloze over head" in text
    page = publish_comparison(tmp_path, "which", "Which?", rows, ORIGIN)
    assert "(which-ways.svg)" in page.read_text()
    assert (tmp_path / "which-ways.svg").read_text().startswith("<?xml")
    assert json.loads((tmp_path / "which.json").read_text())["rows"] == rows


ORIGIN = {
    "date": "2026-01-01",
    "command": "python jobs/compare.py",
    "commit": "0" * 12,
    "versions": {"python": "3.11"},
    "hardware": {"processor": "x", "cores": 2, "memory_gib": 8, "gpus": []},
}
