"""Scores equal the libraries' and hand counts, and fall apart into examples without loss."""

import math

import numpy as np
import pytest

from glm_dist.data.text_units import text_units
from glm_dist.errors import DataError, DependencyError, import_optional
from glm_dist.evaluate.score import Score, gain, interval, mean_score
from glm_dist.evaluate.scores import (
    accuracy,
    answer_f1,
    bleu,
    chrf,
    distinct,
    entity_f1,
    exact_match,
    macro_f1,
    matthews,
    micro_f1,
    recall_at,
    repetition,
    rouge,
    span_f1,
)

RIGHT = ["a", "a", "a", "b", "b", "c", "c", "a"]
SAID = ["a", "a", "b", "b", "c", "c", "a", "a"]
TAGS = [
    ["B-PER", "M-PER", "E-PER", "O", "S-LOC"],
    ["O", "B-ORG", "E-ORG"],
    ["S-LOC", "O"],
]
SAID_TAGS = [
    ["B-PER", "M-PER", "E-PER", "O", "O"],
    ["B-ORG", "M-ORG", "E-ORG"],
    ["S-LOC", "O"],
]
ENGLISH = ["the cat sat on the mat today", "a dog barks loudly at night here"]
SAID_ENGLISH = ["the cat sat on a mat today", "the dog barks loudly at night"]
CHINESE = ["今天天气很好我们去公园", "模型在测试集上的表现"]
SAID_CHINESE = ["今天天气很好我们去爬山", "模型的表现"]

SCORES: dict[str, Score] = {
    "accuracy": accuracy(RIGHT, SAID),
    "macro_f1": macro_f1(RIGHT, SAID),
    "micro_f1": micro_f1([{"x"}, {"x", "y"}, set()], [{"x"}, {"y"}, {"z"}]),
    "matthews": matthews(RIGHT, SAID),
    "entity_f1": entity_f1(TAGS, SAID_TAGS),
    "span_f1": span_f1([{1, 2}, {3}], [{1}, {3, 4}]),
    "bleu": bleu(ENGLISH, SAID_ENGLISH, "en"),
    "bleu_zh": bleu(CHINESE, SAID_CHINESE, "zh"),
    "chrf": chrf(CHINESE, SAID_CHINESE),
    "rouge": rouge(ENGLISH, SAID_ENGLISH, "rouge1"),
    "rouge_zh": rouge(CHINESE, SAID_CHINESE, "rougeL"),
    "recall": recall_at(2, [1, 2, 3, 9]),
}


@pytest.mark.parametrize("name", SCORES)
def test_the_sum_of_the_examples_gives_the_librarys_value(name):
    score = SCORES[name]
    sums = score.statistics.sum(axis=0, keepdims=True)
    assert score.combine(sums)[0] == pytest.approx(score.value)
    assert 0 < score.value < 100
    scores_of_two = score.combine(np.vstack((sums, 3 * sums)))
    assert scores_of_two == pytest.approx([score.value, score.value])


def test_values_counted_by_hand():
    assert accuracy(RIGHT, SAID).value == pytest.approx(100 * 5 / 8)
    assert macro_f1(RIGHT, SAID).value == pytest.approx(100 * (6 / 8 + 1 / 2 + 1 / 2) / 3)
    assert macro_f1(RIGHT, SAID, ["a", "b", "c", "d"]).value == pytest.approx(175 / 4)
    assert SCORES["micro_f1"].value == pytest.approx(100 * 2 * 2 / (3 + 3))
    # Hits PER and the second LOC; said PER, a longer ORG, LOC; right PER, LOC, ORG, LOC.
    assert SCORES["entity_f1"].value == pytest.approx(100 * 2 * 2 / (3 + 4))
    assert SCORES["recall"].value == 50
    # Unigrams shared: 6 of 7 and 7 (the, cat, sat, on, mat, today).
    first = rouge(ENGLISH[:1], SAID_ENGLISH[:1], "rouge1").value
    assert first == pytest.approx(100 * 2 * 6 / (7 + 7))
    # The longest common subsequence is 今天天气很好我们去, 9 of 11 characters.
    assert rouge(CHINESE[:1], SAID_CHINESE[:1]).value == pytest.approx(100 * 9 / 11)


def test_of_several_references_the_best_one_counts():
    assert rouge([["nothing alike", "the cat"]], ["the cat"]).value == 100
    assert exact_match([["a dog", "the cat"]], ["Cat!"]).value == 100
    assert bleu([["x y z w v", "the cat sat on it"]], ["the cat sat on it"], "en").value > 99


def test_bleu_names_its_signature_and_tokenizes_chinese_by_characters():
    assert "tok:zh" in SCORES["bleu_zh"].signature
    assert "tok:13a" in SCORES["bleu"].signature
    assert "nrefs:1" in SCORES["bleu"].signature


def test_answers_are_normalised_as_squad_and_cmrc_do():
    assert exact_match(["The Eiffel Tower"], ["eiffel tower."]).value == 100
    assert answer_f1(["the big red house"], ["a red house"]).value == pytest.approx(80)
    assert exact_match(["《红楼梦》"], ["红楼梦"], "zh").value == 100
    # Only the longest common run counts: 红楼 of 红楼梦 and 红楼说梦.
    assert answer_f1(["红楼梦"], ["红楼说梦"], "zh").value == pytest.approx(100 * 2 * 2 / 7)
    assert answer_f1([""], [""], "en").value == 100
    assert answer_f1(["x"], [""], "en").value == 0


def test_diversity_counts_ngrams_of_words_and_characters():
    assert distinct(["a b a b"], 2) == pytest.approx(100 * 2 / 3)
    assert distinct(["好好好"], 1) == pytest.approx(100 / 3)
    assert repetition(["a b a b a b", "a b c d e"], 2).value == pytest.approx(100 * (3 / 5) / 2)
    assert repetition(["short"], 4).value == 0


def test_units_are_words_and_single_han_characters():
    assert text_units("GLM-4 很好，对吧? 𠮷") == ["glm", "4", "很", "好", "对", "吧", "𠮷"]


def test_the_interval_covers_the_true_share_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(60):
        low_high = interval([mean_score("x", rng.random(200) < 0.7)], seed)
        covered += low_high.low <= 70 <= low_high.high
    assert covered >= 51  # 57 expected; below 51 about once in two hundred


def test_the_interval_is_the_same_every_time_and_spans_seeds():
    steady = [mean_score("x", np.arange(400) % 10 < 7)]
    apart = [mean_score("x", np.arange(400) % 10 < k) for k in (5, 7, 9)]
    assert interval(steady) == interval(steady)
    narrow, wide = interval(steady), interval(apart)
    assert narrow.value == wide.value == pytest.approx(70)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_a_paired_gain_sees_what_single_intervals_hide():
    rng = np.random.default_rng(3)
    is_hard = rng.random(500) < 0.4
    ours = mean_score("x", ~is_hard)
    theirs = mean_score("x", ~is_hard & (rng.random(500) > 0.05))
    assert interval([ours]).low < theirs.value
    assert gain([ours], [theirs]).low > 0
    assert gain([ours], [ours]) == (0, 0, 0)
    assert gain([ours, ours], [theirs]).value == pytest.approx(ours.value - theirs.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: accuracy(["a"], ["a", "b"]),
        lambda: accuracy([], []),
        lambda: entity_f1([["O", "O"]], [["O"]]),
        lambda: gain([mean_score("x", [1, 0])], [mean_score("x", [1])]),
        lambda: recall_at(1, []),
    ],
)
def test_what_cannot_be_scored_is_said(wrong):
    with pytest.raises(DataError, match=r"predictions|one tag a token|same examples|no examples"):
        wrong()


def test_a_missing_library_is_named_with_the_extra_that_brings_it():
    with pytest.raises(DependencyError, match=r"pip install 'glm-dist\[scores\]'"):
        import_optional("no_such_library_at_all.part", "scores")


def test_matthews_is_zero_for_a_constant_guess():
    assert matthews(RIGHT, ["a"] * 8).value == 0
    assert not math.isnan(interval([matthews(RIGHT, ["a"] * 8)]).low)
