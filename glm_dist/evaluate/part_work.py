"""What an engine of a pool does with a part: filled texts, or answers to a task's examples.

They travel to the engine's process, which opens the model there.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glm_dist.evaluate.answers import Answerer
from glm_dist.inference import GenerationSettings, Generator, load_model
from glm_dist.tasks import Answer, Task

Answering = Callable[[Sequence[Any]], list[dict[str, Any]]]
"""Rows in, a row of answers for each."""


@dataclass(frozen=True)
class PartWork(ABC):
    """One model asked about rows."""

    model: str
    """A finished run's or model's folder."""
    base: str | None
    """Where the model beside an adapter lies, if it was moved."""
    device: str

    @abstractmethod
    def open(self) -> Answering:
        """Load the model."""

    def _load(self) -> tuple[Any, Any]:
        model, tokenizer = load_model(self.model, self.base)
        return model.to(self.device), tokenizer


@dataclass(frozen=True)
class FilledTexts(PartWork):
    """Rows are (number in the dataset, place, text); the number joins the seed of its draws."""

    settings: GenerationSettings

    def open(self) -> Answering:
        """Load the model."""
        generator = Generator(*self._load())

        def answer(rows: Sequence[Any]) -> list[dict[str, Any]]:
            of_each = [
                self.settings.model_copy(update={"seed": self.settings.seed + number})
                for number, _, _ in rows
            ]
            found = generator.generate([text for _, _, text in rows], of_each)
            return [
                {"place": place, "prompt": one.prompt, "text": one.text, "blanks": one.blanks}
                for (_, place, _), one in zip(rows, found, strict=True)
            ]

        return answer


@dataclass(frozen=True)
class TaskAnswers(PartWork):
    """Rows are examples of a task."""

    task: Task[Any]

    def open(self) -> Answering:
        """Load the model."""
        answerer = Answerer(*self._load(), self.task)

        def answer(rows: Sequence[Any]) -> list[dict[str, Any]]:
            return [
                {
                    "place": example.place,
                    "input": self.task.shown(example),
                    "prediction": json.dumps(one.value, ensure_ascii=False),
                    "probabilities": list(one.probabilities),
                }
                for example, one in zip(rows, answerer.answer(rows), strict=True)
            ]

        return answer


def answer_of(row: Mapping[str, Any]) -> Answer:
    """An answer as `TaskAnswers` wrote it down."""
    return Answer(json.loads(row["prediction"]), tuple(row["probabilities"]))
