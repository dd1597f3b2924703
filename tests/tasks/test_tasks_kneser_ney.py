"""The n-gram model equals the formula written out over dictionaries, and sums to one."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from glm_dist.errors import DataError
from glm_dist.tasks.baselines.kneser_ney import KneserNey

VOCABULARY = 6
BEGIN = VOCABULARY


def corpus(num_documents: int, seed: int) -> list[np.ndarray]:
    """Documents in which the next token leans on the two before it."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(VOCABULARY, 0.3), size=(VOCABULARY, VOCABULARY))
    documents = []
    for _ in range(num_documents):
        tokens = [0, 1]
        for _ in range(int(rng.integers(0, 40))):
            tokens.append(int(rng.choice(VOCABULARY, p=table[tokens[-2], tokens[-1]])))
        documents.append(np.array(tokens[1:]))
    return documents


class WrittenOut:
    """Chen and Goodman's formula, n-gram by n-gram."""

    def __init__(self, documents: list[np.ndarray], order: int) -> None:
        raw: Counter[tuple[int, ...]] = Counter()
        for document in documents:
            tokens = (BEGIN, *map(int, document))
            for end in range(1, len(tokens)):
                for start in range(max(0, end - order + 1), end + 1):
                    raw[tokens[start : end + 1]] += 1
        self.counts: list[dict[tuple[int, ...], int]] = [{}]
        for size in range(1, order + 1):
            if size == order:
                counts = {gram: n for gram, n in raw.items() if len(gram) == size}
            else:
                left: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
                for gram in raw:
                    if len(gram) == size + 1:
                        left[gram[1:]].add(gram[0])
                counts = {gram: len(neighbours) for gram, neighbours in left.items()}
                counts |= {g: n for g, n in raw.items() if len(g) == size and g[0] == BEGIN}
            self.counts.append(counts)
        self.discounts = [[0.0] * 4] + [self._discount(counts) for counts in self.counts[1:]]

    def _discount(self, counts: dict[tuple[int, ...], int]) -> list[float]:
        t = [sum(n == k for n in counts.values()) for k in range(5)]
        if not all(t[1:4]):
            return [0.0, 0.5, 1.0, 1.5]
        y = t[1] / (t[1] + 2 * t[2])
        found = [k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3)]
        if not all(0 <= d <= k for k, d in enumerate(found, 1)):
            return [0.0, 0.5, 1.0, 1.5]
        return [0.0, *found]

    def probability(self, word: int, history: tuple[int, ...]) -> float:
        size = len(history) + 1
        counts, discount = self.counts[size], self.discounts[size]
        lower = self.probability(word, history[1:]) if history else 1 / VOCABULARY
        following = {gram: n for gram, n in counts.items() if gram[:-1] == history}
        total = sum(following.values())
        if not total:
            return lower
        count = counts.get((*history, word), 0)
        left = sum(discount[min(n, 3)] for n in following.values())
        return (count - discount[min(count, 3)] + left * lower) / total

    def log_probabilities(self, document: np.ndarray, order: int) -> list[float]:
        tokens = (BEGIN, *map(int, document))
        return [
            math.log(self.probability(tokens[i], tokens[max(0, i - order + 1) : i]))
            for i in range(1, len(tokens))
        ]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_it_equals_the_formula_written_out(order):
    documents = [*corpus(60, seed=1), np.array([], dtype=int), np.array([5])]
    model, formula = KneserNey(documents, VOCABULARY, order), WrittenOut(documents, order)
    if order in (2, 3):  # the discounts are estimated, not fallen back on
        assert formula.discounts[order] != [0.0, 0.5, 1.0, 1.5]
    for document in [*corpus(10, seed=2), documents[0], np.array([5, 5, 5, 0])]:
        expected = formula.log_probabilities(document, order)
        assert model.log_probabilities(document) == pytest.approx(expected, rel=1e-12)


def test_probabilities_of_all_next_tokens_add_up_to_one():
    model = KneserNey(corpus(40, seed=3), VOCABULARY, 4)
    for history in [[], [0], [1, 5, 5], [2, 0, 3, 4, 1]]:
        each = [model.log_probabilities(np.array([*history, w]))[-1] for w in range(VOCABULARY)]
        assert np.exp(each).sum() == pytest.approx(1, abs=1e-12)


def test_longer_contexts_help_where_the_text_has_them():
    train, unseen = corpus(800, seed=4), corpus(800, seed=4)[:50]
    sizes = np.ones(VOCABULARY, dtype=int)
    bits = [KneserNey(train, VOCABULARY, order).bits_per_byte(unseen, sizes) for order in (1, 2, 3)]
    assert bits[0] > bits[1] + 0.1 > bits[2] + 0.2
    assert bits[0] < math.log2(VOCABULARY)


def test_bits_are_counted_against_bytes():
    model = KneserNey(corpus(20, seed=5), VOCABULARY, 3)
    documents = corpus(5, seed=6)
    total = -sum(model.log_probabilities(one).sum() for one in documents) / math.log(2)
    size = 3 * sum(map(len, documents))
    three = np.full(VOCABULARY, 3)
    assert model.bits_per_byte(documents, three) == pytest.approx(total / size)


def test_text_without_tokens_is_refused():
    with pytest.raises(DataError, match="holds no tokens"):
        KneserNey([np.array([], dtype=int)], VOCABULARY)
