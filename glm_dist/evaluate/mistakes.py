"""Where predictions are wrong: by class, by length, which for which, and the surest mistakes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glm_dist.errors import import_optional


class ClassRow(NamedTuple):
    """One label's scores, in percent."""

    label: str
    precision: float
    recall: float
    f1: float
    num_examples: int


class LengthRow(NamedTuple):
    """Mean value of the examples of one range of lengths."""

    shortest: int
    longest: int
    value: float
    num_examples: int


class WrongExample(NamedTuple):
    """A mistake, and how sure the model was of it."""

    text: str
    reference: str
    prediction: str
    confidence: float


def per_class(
    references: Sequence[str], predictions: Sequence[str], labels: Sequence[str]
) -> list[ClassRow]:
    """Precision, recall and F1 of every label, in the order given."""
    metrics = import_optional("sklearn.metrics", "scores")
    columns = metrics.precision_recall_fscore_support(
        references, predictions, labels=list(labels), zero_division=0
    )
    rows = zip(labels, *columns, strict=True)
    return [
        ClassRow(label, 100 * float(precision), 100 * float(recall), 100 * float(f1), int(count))
        for label, precision, recall, f1, count in rows
    ]


def per_length(
    lengths: Sequence[int], values: Sequence[float] | np.ndarray, num_ranges: int = 4
) -> list[LengthRow]:
    """Mean values of about equally many examples, short to long; equal lengths stay together."""
    sizes, each = np.asarray(lengths), np.asarray(values, dtype=np.float64)
    borders = np.unique(np.quantile(sizes, np.linspace(0, 1, num_ranges + 1)[1:-1]))
    numbers = np.searchsorted(borders, sizes, side="left")
    rows = []
    for number in np.unique(numbers):
        chosen = numbers == number
        inside = sizes[chosen]
        rows.append(
            LengthRow(int(inside.min()), int(inside.max()), float(each[chosen].mean()), len(inside))
        )
    return rows


def confusion(
    references: Sequence[str], predictions: Sequence[str], labels: Sequence[str]
) -> np.ndarray:
    """Counts [labels, labels]: rows what is right, columns what was said."""
    metrics = import_optional("sklearn.metrics", "scores")
    return metrics.confusion_matrix(references, predictions, labels=list(labels))


def worst_errors(
    texts: Sequence[str],
    references: Sequence[str],
    predictions: Sequence[str],
    confidences: Sequence[float] | np.ndarray,
    count: int = 10,
) -> list[WrongExample]:
    """The mistakes that were made most surely, the surest first."""
    rows = zip(texts, references, predictions, map(float, confidences), strict=True)
    wrong = [WrongExample(*row) for row in rows if row[1] != row[2]]
    return sorted(wrong, key=lambda one: -one.confidence)[:count]
