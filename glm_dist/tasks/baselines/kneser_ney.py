"""An n-gram language model with interpolated modified Kneser-Ney smoothing.

Over the ids of a tokenizer, so that it is measured in the same bits a byte as a neural model.
Counts are numpy arrays, one row a distinct n-gram: millions of tokens take seconds.

    p(w|h) = (c(hw) - D(c(hw))) / c(h.) + gamma(h) p(w|h')               Chen and Goodman 1999

c counts occurrences at the highest order and distinct left neighbours below it, where what begins a
document, which has none, keeps its occurrences; h' is h without its first token; the lowest order
is interpolated with the uniform distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glm_dist.errors import DataError

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # KenLM's --discount_fallback
MISSING = -1


@dataclass(frozen=True)
class _Order:
    """The distinct n-grams of one length."""

    keys: np.ndarray
    """[G] sorted: row of the n-gram without its last token, times width, plus the last token."""
    discounted: np.ndarray
    """[G] counts less discounts."""
    totals: np.ndarray
    """[contexts] sum of the counts of a context's n-grams."""
    gammas: np.ndarray
    """[contexts] share left for the order below."""

    def find(self, contexts: np.ndarray, tokens: np.ndarray, width: int) -> np.ndarray:
        """The row of each context and token together, MISSING where it was never seen."""
        if not len(self.keys):
            return np.full(len(tokens), MISSING)
        keys = np.where(contexts == MISSING, MISSING, contexts * width + tokens)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, MISSING)

    def interpolate(self, contexts: np.ndarray, rows: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """This order's probabilities from those of the order below."""
        totals = np.where(contexts == MISSING, 0, self.totals[contexts])
        is_known = totals > 0
        hits = np.where(rows == MISSING, 0, self.discounted[rows]) if len(self.keys) else 0.0
        mixed = hits / np.where(is_known, totals, 1) + self.gammas[contexts] * lower
        return np.where(is_known, mixed, lower)


class KneserNey:
    """The model; a document begins after a mark that is never predicted."""

    def __init__(self, documents: Sequence[np.ndarray], vocab_size: int, order: int = 5) -> None:
        """Count the documents, arrays of ids below `vocab_size`.

        Raises:
            DataError: when they hold no token.
        """
        if not any(len(document) for document in documents):
            raise DataError("n-gram model: the training text holds no tokens; give some text")
        self.order = order
        self.vocab_size = vocab_size
        self._width = vocab_size + 1
        self._orders = self._count(*self._stream(documents))

    def describe(self) -> str:
        """One line for a report."""
        counts = ", ".join(f"{len(one.keys):,}" for one in self._orders)
        return f"{self.order}-gram model, modified Kneser-Ney; distinct n-grams: {counts}"

    def log_probabilities(self, document: np.ndarray) -> np.ndarray:
        """Natural logarithm of each token's probability after those before it, [N]."""
        return self._log_probabilities([document])

    def bits_per_byte(self, documents: Sequence[np.ndarray], piece_bytes: np.ndarray) -> float:
        """Bits for each UTF-8 byte of documents; `piece_bytes` [vocabulary] is each token's."""
        size = sum(int(piece_bytes[document].sum()) for document in documents)
        return float(-self._log_probabilities(documents).sum() / np.log(2) / size)

    def _stream(self, documents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """All documents behind one another, a mark before each, and the place in the document."""
        mark = [self.vocab_size]
        tokens = np.concatenate([part for one in documents for part in (mark, one)])
        depth = np.concatenate([np.arange(1 + len(one)) for one in documents])
        return tokens.astype(np.int64), depth

    def _log_probabilities(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        tokens, depth = self._stream(documents)
        probabilities = np.full(len(tokens), 1 / self.vocab_size)
        contexts = np.zeros(len(tokens), dtype=np.int64)
        for number, one in enumerate(self._orders, 1):
            rows = tokens if number == 1 else one.find(contexts, tokens, self._width)
            probabilities = one.interpolate(contexts, rows, probabilities)
            contexts = _contexts(rows, depth, number)
        return np.log(probabilities[depth > 0])

    def _count(self, tokens: np.ndarray, depth: np.ndarray) -> list[_Order]:
        # Order 1 has a row for every token, seen or not, so that its rows are the tokens.
        keys, rows, num_contexts = np.arange(self._width), tokens, 1
        orders = []
        for number in range(1, self.order):
            contexts = _contexts(rows, depth, number)
            inside = np.flatnonzero(contexts != MISSING)
            longer_keys, firsts, longer = np.unique(
                contexts[inside] * self._width + tokens[inside],
                return_index=True,
                return_inverse=True,
            )
            # Each longer n-gram is one left neighbour of its last `number` tokens.
            begins = (depth == number - 1) & (depth > 0)
            counts = np.bincount(rows[inside[firsts]], minlength=len(keys))
            counts += np.bincount(rows[begins], minlength=len(keys))
            orders.append(_order(keys, counts, self._width, num_contexts))
            keys, num_contexts = longer_keys, len(keys)
            rows = np.full(len(tokens), MISSING)
            rows[inside] = longer
        counts = np.bincount(rows[(rows != MISSING) & (depth > 0)], minlength=len(keys))
        return [*orders, _order(keys, counts, self._width, num_contexts)]


def _contexts(rows: np.ndarray, depth: np.ndarray, number: int) -> np.ndarray:
    """What stands before each token: the row of the `number` tokens there, in one document."""
    before = np.concatenate(([MISSING], rows[:-1]))
    return np.where(depth >= number, before, MISSING)


def _order(keys: np.ndarray, counts: np.ndarray, width: int, num_contexts: int) -> _Order:
    discounts = np.concatenate(([0.0], _discounts(counts)))[np.minimum(counts, 3)]
    contexts = keys // width
    totals = np.bincount(contexts, counts, minlength=num_contexts)
    left = np.bincount(contexts, discounts, minlength=num_contexts)
    return _Order(keys, counts - discounts, totals, left / np.maximum(totals, 1))


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D1, D2 and D3+ from how many n-grams occur one to four times (Chen and Goodman, 26)."""
    once, twice, thrice, four = np.bincount(counts, minlength=5)[1:5].astype(np.float64)
    if min(once, twice, thrice) == 0:
        return np.array(FALLBACK_DISCOUNTS)
    share = once / (once + 2 * twice)
    ratios = np.array([twice / once, thrice / twice, four / thrice])
    found = np.array([1, 2, 3]) - np.array([2, 3, 4]) * share * ratios
    is_sound = ((found >= 0) & (found <= [1, 2, 3])).all()
    return found if is_sound else np.array(FALLBACK_DISCOUNTS)
