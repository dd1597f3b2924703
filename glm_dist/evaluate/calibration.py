"""Do probabilities mean what they say: reliability, its error, and the temperature that mends it.

The temperature is fitted on the dev split alone; the test split only shows what it did.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glm_dist.errors import import_optional
from glm_dist.tasks import Answer, Task, build_task, save_task

NUM_BINS = 15  # Guo et al. 2017
SMALLEST_PROBABILITY = 1e-12
LOG_TEMPERATURES = (-3.0, 3.0)


class ReliabilityBin(NamedTuple):
    """Examples whose most likely label has about one probability."""

    confidence: float
    """Mean probability of that label."""
    accuracy: float
    """Share of examples where it is right."""
    num_examples: int


def reliability(probabilities: np.ndarray, labels: Sequence[int]) -> list[ReliabilityBin]:
    """The bins of [N, C] probabilities that hold examples, from unsure to sure."""
    confidence = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == np.asarray(labels)
    numbers = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = [numbers == number for number in range(NUM_BINS)]
    return [
        ReliabilityBin(float(confidence[one].mean()), float(is_right[one].mean()), int(one.sum()))
        for one in bins
        if one.any()
    ]


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Mean distance of confidence from accuracy, in percent (Guo et al. 2017, equation 3)."""
    total = sum(one.num_examples for one in bins)
    return 100 * sum(abs(one.confidence - one.accuracy) * one.num_examples for one in bins) / total


def fit_temperature(probabilities: np.ndarray, labels: Sequence[int]) -> float:
    """The temperature under which [N, C] dev probabilities give the labels the least loss."""
    optimize = import_optional("scipy.optimize", "scores")
    rows = np.arange(len(probabilities))

    def loss(log_temperature: float) -> float:
        cooled = apply_temperature(probabilities, float(np.exp(log_temperature)))
        return float(-np.log(np.maximum(cooled[rows, labels], SMALLEST_PROBABILITY)).mean())

    found = optimize.minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded")
    return float(np.exp(found.x))


def calibrate(
    folder: Path, task: Task[Any], answers: Sequence[Answer], golds: Sequence[str]
) -> Task[Any]:
    """The task with a temperature fitted on dev answers, left with its model in `folder`.

    Args:
        folder: of the finished model.
        task: of labels, as it gave the answers.
        answers: to dev examples.
        golds: their labels.
    """
    chances = np.array([answer.probabilities for answer in answers])
    temperature = fit_temperature(chances, [task.labels.index(gold) for gold in golds])
    values = task.settings.model_dump()
    values["temperature"] *= temperature
    settings = type(task.settings)(**values)
    save_task(folder, settings, task.binding.max_tokens)
    return build_task(settings, task.binding)


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities [N, C] of the same scores divided by `temperature`: above 1 less sure."""
    logits = np.log(np.maximum(probabilities, SMALLEST_PROBABILITY)) / temperature
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)
