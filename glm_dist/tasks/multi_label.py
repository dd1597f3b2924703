"""Any number of labels for each text, or pair of texts, by a head that asks for each by itself.

A label is given where its probability reaches a threshold, which is chosen on dev examples when a
model has been tuned, and stays with it.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from glm_dist.errors import DataError
from glm_dist.model.settings import HeadSettings
from glm_dist.objective import labelled_sample
from glm_dist.tasks.examples import Example
from glm_dist.tasks.settings import TaskSettings
from glm_dist.tasks.task import Answer, Question, Reply, Task, TaskSample
from glm_dist.tasks.whole_text import (
    pooled_place,
    shown_texts,
    sorted_labels,
    text_problems,
    whole_text,
)

SHOWN_LABELS = 20


class MultiLabelSettings(TaskSettings):
    """Texts, or pairs of texts, each with any number of labels."""

    fields: ClassVar[tuple[str, ...]] = ("text", "labels")
    optional_fields: ClassVar[tuple[str, ...]] = ("text_b",)
    answer_field: ClassVar[str | None] = "labels"

    kind: Literal["multi_label"] = "multi_label"
    labels: list[str] = []
    """All labels in an order of your own; by default those of the training examples, sorted."""
    separator: str = Field(",", min_length=1)
    """Stands between the labels of an example that has them in one text, as tables do."""
    renamed: dict[str, str | None] = {}
    """What stands in the files: the label that it means, null for none. Several may mean one."""
    tuned: Literal["shared", "each", "none"] = "shared"
    """Which thresholds are chosen on the dev examples: one for all labels, with the best micro F1;
    one for each, with its own best F1, where there are many examples; or none."""
    threshold: float = Field(0.5, ge=0, le=1)
    """Probability from which on a label is given."""
    thresholds: dict[str, float] = {}
    """label: threshold of its own."""
    min_labels: int = Field(0, ge=0)
    """As many of the likeliest labels are given even where they do not reach their thresholds."""

    @model_validator(mode="after")
    def _check_labels(self) -> "MultiLabelSettings":
        strange = [name for name in self.thresholds if self.labels and name not in self.labels]
        if strange:
            raise ValueError(f"thresholds: {', '.join(strange)} is none of the labels")
        return self

    def names(self, value: Any) -> list[str]:
        """The labels that a field names, each once; an element of a list is one label."""
        parts = value if isinstance(value, list) else str(value or "").split(self.separator)
        found = [str(part).strip() for part in parts if part is not None]
        meant = [self.renamed.get(name, name) for name in found]
        return list(dict.fromkeys(name for name in meant if name))


class MultiLabel(Task[MultiLabelSettings]):
    """The labels of each example, in the order of their ids."""

    Settings = MultiLabelSettings
    scoring = "label_sets"

    @classmethod
    def complete(
        cls, settings: MultiLabelSettings, examples: Sequence[Example]
    ) -> MultiLabelSettings:
        """With the labels written out.

        Raises:
            DataError: when there are none.
        """
        found = {name for one in examples for name in settings.names(one.fields.get("labels"))}
        labels = settings.labels or sorted_labels(found)
        if not labels:
            raise DataError(
                "task.train: no example has a label; say where they are, e.g. "
                "task.columns='{labels: COLUMN}'"
            )
        return MultiLabelSettings(**{**settings.model_dump(), "labels": labels})

    @property
    def head(self) -> HeadSettings:
        """A linear map with a yes or no for each label."""
        labels = self.settings.labels
        return HeadSettings(kind="sequence_classification", labels=labels, multi_label=True)

    @property
    def labels(self) -> Sequence[str]:
        """In the order of their ids."""
        return self.settings.labels

    @property
    def thresholds(self) -> np.ndarray:
        """Of each label, [labels]."""
        settings = self.settings
        return np.array([settings.thresholds.get(one, settings.threshold) for one in self.labels])

    def problems(self, example: Example, *, is_labelled: bool = True) -> list[str]:
        """An empty text, no field of labels, or one that training has not seen."""
        found, value = text_problems(example), example.fields.get("labels")
        if not is_labelled:
            return found
        if value is None:
            return [*found, "the labels are missing; give a list, an empty one where there is none"]
        known = ", ".join(map(repr, self.labels[:SHOWN_LABELS]))
        return found + [
            f"the label {name!r} is none that training has seen ({known}); mend it, or name all "
            "labels in task.labels"
            for name in self.settings.names(value)
            if name not in self.labels
        ]

    def training_samples(self, example: Example) -> list[TaskSample]:
        """The text, with 0 or 1 for each label."""
        text, there = whole_text(example, self.binding), set(self.gold(example))
        shares = np.array([[label in there for label in self.labels]], np.float32)
        return [TaskSample(labelled_sample(text, [pooled_place(text, self.binding)], shares))]

    def questions(self, example: Example) -> list[Question]:
        """The text, to be labelled at one token."""
        text = whole_text(example, self.binding)
        return [Question(text, (pooled_place(text, self.binding),))]

    def answer(self, example: Example, replies: Sequence[Reply]) -> Answer:
        """The labels that reach their thresholds."""
        (reply,) = replies
        chances = 1 / (1 + np.exp(-np.clip(reply.scores[0], -500, 500)))
        return self.decide(chances)

    def decide(self, chances: Sequence[float] | np.ndarray) -> Answer:
        """What the labels' probabilities [labels] make under the thresholds."""
        likely = np.asarray(chances)
        given = likely >= self.thresholds
        given[np.argsort(-likely, kind="stable")[: self.settings.min_labels]] = True
        names = [label for label, is_given in zip(self.labels, given, strict=True) if is_given]
        return Answer(names, tuple(map(float, likely)))

    def gold(self, example: Example) -> list[str]:
        """Its labels, in the order of their ids."""
        there = self.settings.names(example.fields.get("labels"))
        return [label for label in self.labels if label in there]

    def shown(self, example: Example) -> str:
        """Both texts."""
        return shown_texts(example)
