"""The one token of a sample at which a classification is decided, so that it can be explained."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from glm_dist.errors import ConfigError
from glm_dist.evaluate.explain import Decision
from glm_dist.objective import labelled_sample, supervised_sample
from glm_dist.tasks import Answer, Question, Task
from glm_dist.tasks.classification import Classification
from glm_dist.tasks.examples import Example


def decision_of(task: Task[Any], example: Example, answer: Answer) -> Decision:
    """Where the answer to an example was chosen; of several patterns, that of the first.

    By cloze it is the first token at which the labels' words differ.

    Raises:
        ConfigError: when the task is none of classification, or some of its labels' words differ
            nowhere but later.
    """
    if not isinstance(task, Classification):
        raise ConfigError(
            f"task.kind: {task.settings.kind} chooses among no labels; explanations are there for "
            "classification"
        )
    question, chosen = task.questions(example)[0], task.labels.index(answer.value)
    if question.options:
        return _cloze_decision(task, question, chosen)
    place = question.places[0]
    sample = labelled_sample(question.tokens, [place], [chosen])
    return Decision(sample, place, list(range(len(task.labels))), chosen)


def _cloze_decision(task: Classification, question: Question, chosen: int) -> Decision:
    shared = _shared_start(question.options)
    firsts = [int(one[shared]) if shared < len(one) else -1 for one in question.options]
    if -1 in firsts or len(set(firsts)) < len(firsts):
        words = ", ".join(map(repr, task.settings.verbalizers.values()))
        raise ConfigError(
            f"task.verbalizers: of {words} some begin alike in this tokenizer, so that no one "
            "token decides; tune with words that begin differently, or with task.method: head"
        )
    sample = supervised_sample(question.tokens, question.options[chosen], task.binding.infill)
    return Decision(sample, len(question.tokens) + shared, firsts, chosen)


def _shared_start(options: Sequence[np.ndarray]) -> int:
    """How many tokens all of them begin with."""
    count = 0
    for tokens in zip(*options, strict=False):
        if len(set(map(int, tokens))) > 1:
            break
        count += 1
    return count
