"""Labels of texts as an ensemble sees them: a probability of each, made of all members' scores.

Pure functions (Schick and Schütze 2021, "Exploiting Cloze Questions for Few Shot Text
Classification", section 3.3); they stand apart from the models whose scores they are.
"""

from collections.abc import Sequence

import numpy as np

from glm_dist.tasks import Answer
from glm_dist.tasks.classification import SHARES
from glm_dist.tasks.examples import Example

SMALLEST_PROBABILITY = 1e-30


def soft_labels(
    probabilities: np.ndarray, weights: Sequence[float], temperature: float
) -> np.ndarray:
    """Probabilities [N, C] of an ensemble.

    The members' scores are averaged by their weights and divided by the temperature. A model's
    log-probabilities are its scores but for a constant of each text, which no softmax sees.

    Args:
        probabilities: of each member, [M, N, C].
        weights: of each member; all 0 counts as all equal.
        temperature: above 1 less sure than the members.
    """
    shares = np.asarray(weights, np.float64)
    if not shares.any():
        shares = np.ones_like(shares)
    scores = np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))
    mean = np.tensordot(shares / shares.sum(), scores, axes=1) / temperature
    raised = np.exp(mean - mean.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def answers_of(probabilities: np.ndarray, labels: Sequence[str]) -> list[Answer]:
    """The likeliest label of each text, from probabilities [N, C]."""
    return [Answer(labels[int(row.argmax())], tuple(map(float, row))) for row in probabilities]


def softly_labelled(
    examples: Sequence[Example], probabilities: np.ndarray, labels: Sequence[str]
) -> list[Example]:
    """Examples to be learnt by a head, each with its probabilities of the labels, [N, C]."""
    return [
        Example({**one.fields, "label": labels[int(row.argmax())], SHARES: row.tolist()}, one.place)
        for one, row in zip(examples, probabilities, strict=True)
    ]


def surely_labelled(examples: Sequence[Example], labels: Sequence[str]) -> list[Example]:
    """Labelled examples in the same form: all probability is on the right label."""
    right = np.array([labels.index(one.text("label")) for one in examples], np.int64)
    return softly_labelled(examples, np.eye(len(labels))[right], labels)
