"""What all tasks have in common: examples in, samples for training and questions for answering out.

A task knows nothing of engines or decoders: its questions say what is to be generated, compared or
labelled, and whoever owns a model answers them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from glm_dist.data.samples import Compared
from glm_dist.model.settings import HeadSettings
from glm_dist.objective import BlankInfillSettings, Mode, ObjectiveSettings, Sample
from glm_dist.tasks.examples import Example
from glm_dist.tasks.settings import DecodingSettings, TaskSettings
from glm_dist.tokenizer import Tokenizer

S = TypeVar("S", bound=TaskSettings)


@dataclass(frozen=True)
class Binding:
    """What a task's samples depend on besides its own settings."""

    tokenizer: Tokenizer
    max_tokens: int
    """Longest sample, Part B included."""
    objective: ObjectiveSettings = ObjectiveSettings()
    pools_first: bool = True
    """Which token a head labels a whole text by; see `ModelSettings.pools_first`."""

    @property
    def infill(self) -> BlankInfillSettings:
        """The objective bound to the vocabulary."""
        return BlankInfillSettings(
            self.objective, self.tokenizer.special, self.tokenizer.sentence_end
        )


@dataclass(frozen=True)
class TaskSample:
    """A sample of an example and what it answers."""

    sample: Sample
    compared: Compared = Compared(0)
    mode: Mode = Mode.SUPERVISED


@dataclass(frozen=True)
class Question:
    """What is asked of a model about one example."""

    tokens: np.ndarray
    """Part A, int32."""
    places: tuple[int, ...] = ()
    """Masks that are to be filled, or tokens that are to be labelled."""
    options: tuple[np.ndarray, ...] = ()
    """Answers to be compared at the one place, where the model need not find its own."""
    decoding: DecodingSettings | None = None
    """How an answer is generated, where it is not as the task's are."""


@dataclass(frozen=True)
class Reply:
    """What a model said to one question."""

    texts: tuple[str, ...] = ()
    """For each place what was generated there."""
    scores: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """Log-probabilities of the options [1, options], or logits of the labels [places, labels]."""


@dataclass(frozen=True)
class Answer:
    """A prediction for one example."""

    value: Any
    """Of the kind that the task's gold answers are."""
    probabilities: tuple[float, ...] = ()
    """Of the labels, where the task has some."""


class Task(ABC, Generic[S]):
    """One kind of question, bound to a tokenizer where samples and questions are to be made."""

    Settings: ClassVar[type[TaskSettings]]
    scoring: ClassVar[str]
    """Which scores its answers get: labels, label_sets, tags, translation, summary, answer, blanks,
    edits, ranking, text, or those of the tasks of a mixture."""

    def __init__(self, settings: S, binding: Binding | None = None) -> None:
        self.settings, self._binding = settings, binding

    @property
    def binding(self) -> Binding:
        """What its samples depend on; checking examples and scoring answers needs none."""
        assert self._binding is not None, "a task makes samples once it is bound to a tokenizer"
        return self._binding

    @property
    def tokenizer(self) -> Tokenizer:
        """That it is bound to."""
        return self.binding.tokenizer

    @classmethod
    def complete(cls, settings: S, examples: Sequence[Example]) -> S:
        """The settings with what the training examples decide, such as the labels."""
        return settings

    @classmethod
    def choose(cls, settings: S, examples: Sequence[Example], seed: int) -> list[Example]:
        """Those to learn from, or to choose a model by; by default all."""
        return list(examples)

    @classmethod
    def relate(cls, settings: S, examples: Sequence[Example]) -> list[Example]:
        """The examples of a split with what they get from one another; by default nothing."""
        return list(examples)

    def source(self, example: Example) -> str:
        """What of a dataset the example counts to."""
        return self.settings.kind

    def repeats(self, examples: Sequence[Example]) -> list[float]:
        """How often each example is to be seen an epoch; by default once."""
        return [1.0] * len(examples)

    @property
    def head(self) -> HeadSettings:
        """The head that the model needs; by default it goes on predicting tokens."""
        return HeadSettings()

    @property
    def decoding(self) -> DecodingSettings:
        """How answers are generated."""
        return getattr(self.settings, "decoding", DecodingSettings())

    @property
    def labels(self) -> Sequence[str]:
        """What there is to choose from, where the answer is a choice."""
        return ()

    @abstractmethod
    def problems(self, example: Example, *, is_labelled: bool = True) -> list[str]:
        """What is wrong with an example, each as a sentence without its place."""

    @abstractmethod
    def training_samples(self, example: Example) -> list[TaskSample]:
        """What is learnt from an example."""

    def dev_samples(self, example: Example) -> list[TaskSample]:
        """What an example is judged by in training; several options where they are compared."""
        return self.training_samples(example)

    @abstractmethod
    def questions(self, example: Example) -> list[Question]:
        """What is asked about an example whose answer need not be known."""

    @abstractmethod
    def answer(self, example: Example, replies: Sequence[Reply]) -> Answer:
        """The prediction that the replies to the questions make."""

    @abstractmethod
    def gold(self, example: Example) -> Any:
        """The right answer."""

    def compared(self, example: Example, value: Any) -> Any:
        """What of a right answer or of a prediction is compared; by default all of it."""
        return value

    def ask(self, values: Mapping[str, Any], place: str) -> Example:
        """An example whose answer is not known, of the fields that somebody gives.

        Raises:
            ValueError: for what is no field, no text and no list, or cannot be asked about.
        """
        known = self.settings.asked_fields
        strange = [repr(name[:100]) for name in values if name not in known]
        if strange:
            raise ValueError(
                f"{', '.join(strange)} is no field of {self.settings.kind}; it has "
                f"{', '.join(known)}"
            )
        wrong = [name for name, value in values.items() if not isinstance(value, str | list)]
        if wrong:
            raise ValueError(f"{wrong[0]} is no text; give a text, or a list where it has parts")
        all_fields = (*self.settings.fields, *self.settings.optional_fields)
        example = Example({**dict.fromkeys(all_fields), **values}, place)
        problems = self.problems(example, is_labelled=False)
        if problems:
            raise ValueError("; ".join(problems))
        return example

    def told(self, example: Example, answer: Answer) -> dict[str, Any]:
        """What whoever asked is told: the value, and the labels' probabilities where it has any."""
        told: dict[str, Any] = {"value": answer.value}
        if answer.probabilities:
            told["probs"] = dict(zip(self.labels, answer.probabilities, strict=True))
        return told

    def texts(self, example: Example) -> list[str]:
        """What there is to read in an example, its answer apart."""
        fields = self.settings.fields
        return [example.text(name) for name in fields if name != self.settings.answer_field]

    def shown(self, example: Example) -> str:
        """The example as a person reads it."""
        return " / ".join(example.text(name) for name in self.settings.fields if name != "label")
