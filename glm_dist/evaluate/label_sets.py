"""What sets of labels are worth, and the thresholds that make them of probabilities.

It stands apart from the scores of single labels, of which every example has exactly one. Thresholds
are chosen on the dev split alone.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from glm_dist.errors import import_optional
from glm_dist.evaluate.mistakes import ClassRow
from glm_dist.evaluate.score import Score, mean_score
from glm_dist.evaluate.scores import f1_of_counts, micro_f1
from glm_dist.tasks import Answer, build_task, save_task
from glm_dist.tasks.multi_label import MultiLabel, MultiLabelSettings

Sets = Sequence[Collection[str]]


def set_scores(references: Sets, predictions: Sets, labels: Sequence[str]) -> list[Score]:
    """Micro F1, macro F1 and the share of examples whose labels are all right and complete."""
    same = [set(a) == set(b) for a, b in zip(references, predictions, strict=True)]
    return [
        micro_f1(references, predictions),
        macro_f1_of_sets(references, predictions, labels),
        mean_score("subset accuracy", same),
    ]


def macro_f1_of_sets(references: Sets, predictions: Sets, labels: Sequence[str]) -> Score:
    """Mean over the labels of each one's F1; labels that never occur count as 0."""
    metrics = import_optional("sklearn.metrics", "scores")
    theirs, ours = _indicators(references, labels), _indicators(predictions, labels)
    # A single column would be taken for one label with two values.
    values = [
        metrics.f1_score(a, b, zero_division=0) for a, b in zip(theirs.T, ours.T, strict=True)
    ]
    value = 100 * float(np.mean(values))
    return f1_of_counts("macro F1", value, ours * theirs, ours, theirs, is_macro=True)


def per_label(references: Sets, predictions: Sets, labels: Sequence[str]) -> list[ClassRow]:
    """Precision, recall and F1 of every label, in the order given."""
    theirs, ours = _indicators(references, labels), _indicators(predictions, labels)
    hits, given, right = (ours * theirs).sum(0), ours.sum(0), theirs.sum(0)
    precision, recall = _share(hits, given), _share(hits, right)
    f1 = _share(2 * hits, given + right)
    return [
        ClassRow(label, float(precision[i]), float(recall[i]), float(f1[i]), int(right[i]))
        for i, label in enumerate(labels)
    ]


def tune_thresholds(
    folder: Path, task: MultiLabel, answers: Sequence[Answer], golds: Sets
) -> MultiLabel:
    """The task with thresholds chosen on dev answers, left with its model in `folder`."""
    chances = np.array([answer.probabilities for answer in answers])
    settings = with_thresholds(task.settings, chances, _indicators(golds, task.labels))
    save_task(folder, settings, task.binding.max_tokens)
    tuned = build_task(settings, task.binding)
    assert isinstance(tuned, MultiLabel)
    return tuned


def with_thresholds(
    settings: MultiLabelSettings, chances: np.ndarray, truths: np.ndarray
) -> MultiLabelSettings:
    """The settings with the thresholds that they ask for, by dev examples.

    Args:
        settings: with all labels.
        chances: probabilities [N, labels].
        truths: 0 or 1, [N, labels].
    """
    if settings.tuned == "none":
        return settings
    changes: dict[str, object] = {"threshold": best_threshold(chances.ravel(), truths.ravel())}
    if settings.tuned == "each":
        changes["thresholds"] = {
            label: best_threshold(chances[:, number], truths[:, number])
            for number, label in enumerate(settings.labels)
            if truths[:, number].any()
        }
    return MultiLabelSettings(**{**settings.model_dump(), **changes})


def best_threshold(chances: np.ndarray, truths: np.ndarray, fallback: float = 0.5) -> float:
    """The threshold of the best F1, halfway between two neighbouring probabilities.

    Of thresholds that are as good the one nearest `fallback` is taken, and `fallback` itself where
    nothing is true.

    Args:
        chances: probabilities [N].
        truths: 0 or 1, [N].
        fallback: what is taken where the examples do not decide.
    """
    if not truths.any():
        return fallback
    order = np.argsort(-chances, kind="stable")
    sorted_chances, hits = chances[order], np.cumsum(truths[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + truths.sum())
    below = np.append(sorted_chances[1:], 0.0)
    # Equals cannot be told apart, so a threshold lies behind the last of them.
    is_border = sorted_chances > below
    is_border[-1] = True
    middles = (sorted_chances + below) / 2
    best = np.flatnonzero(is_border & np.isclose(f1, f1[is_border].max(), rtol=0, atol=1e-12))
    return float(min(middles[best], key=lambda middle: abs(middle - fallback)))


def _indicators(sets: Sets, labels: Sequence[str]) -> np.ndarray:
    """0 or 1, [N, labels]."""
    there = [[label in one for label in labels] for one in sets]
    return np.array(there, np.float64).reshape(len(sets), len(labels))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return 100 * np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
