"""Several tasks learnt by one model, as instruction tuning does; large ones up to a cap.

An example names its task in a field, and all else about it is left to that task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from glm_dist.data.samples import NO_OPTION, Compared
from glm_dist.tasks.examples import Example
from glm_dist.tasks.kinds import KINDS, AnyKind
from glm_dist.tasks.settings import SPLITS, TaskSettings
from glm_dist.tasks.task import Answer, Question, Reply, Task, TaskSample

NAME = "task"
"""Field of an example: the name of its task."""
HEADED = ("labelling", "multi_label")


class MixtureSettings(TaskSettings):
    """Tasks with the files of each, as each would be tuned alone."""

    fields: ClassVar[tuple[str, ...]] = (NAME,)

    kind: Literal["mixture"] = "mixture"
    tasks: dict[str, AnyKind] = Field(min_length=1)
    """Name: a task of any other kind that needs no head of its own."""
    most_examples: PositiveInt | None = None
    """An epoch holds about so many examples of a task at most, others in the next one (Raffel et
    al. 2020, 3.5.2: examples-proportional mixing); by default all of each."""

    @model_validator(mode="after")
    def _check_parts(self) -> "MixtureSettings":
        given = [name for name in (*SPLITS, "max_examples", "columns") if getattr(self, name)]
        problems = [f"{name}: belongs to each of task.tasks; move it there" for name in given]
        problems += [
            f"tasks: {name} needs a head of its own, and tasks that share a model have none; tune "
            "it alone, or classify by cloze"
            for name, one in self.tasks.items()
            if one.kind in HEADED or getattr(one, "method", "") == "head"
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def asked_fields(self) -> tuple[str, ...]:
        """The task's name, and what any of the tasks is asked with."""
        known = (field for one in self.tasks.values() for field in one.asked_fields)
        return tuple(dict.fromkeys((NAME, *known)))


class Mixture(Task[MixtureSettings]):
    """Each example is learnt, asked and answered as its own task says."""

    Settings = MixtureSettings
    scoring = "mixture"

    @classmethod
    def complete(cls, settings: MixtureSettings, examples: Sequence[Example]) -> MixtureSettings:
        """With every task's settings complete."""
        complete = {
            name: KINDS[one.kind].complete(one, examples_of(name, examples))
            for name, one in settings.tasks.items()
        }
        return settings.model_copy(update={"tasks": complete})

    @cached_property
    def parts(self) -> dict[str, Task[Any]]:
        """The tasks by their names."""
        return {
            name: KINDS[one.kind](one, self._binding) for name, one in self.settings.tasks.items()
        }

    def part(self, example: Example) -> Task[Any]:
        """The task that an example is of."""
        return self.parts[example.fields[NAME]]

    def problems(self, example: Example, *, is_labelled: bool = True) -> list[str]:
        """Those that its task finds."""
        return self.part(example).problems(example, is_labelled=is_labelled)

    def training_samples(self, example: Example) -> list[TaskSample]:
        """Those of its task."""
        return self.part(example).training_samples(example)

    def dev_samples(self, example: Example) -> list[TaskSample]:
        """Right answers alone, each with the number of its task."""
        number = list(self.parts).index(example.fields[NAME])
        return [
            replace(one, compared=Compared(0, gold=number))
            for one in self.part(example).dev_samples(example)
            if one.compared.option in (NO_OPTION, one.compared.gold)
        ]

    def questions(self, example: Example) -> list[Question]:
        """Those of its task, decoded as that decodes."""
        part = self.part(example)
        return [replace(one, decoding=part.decoding) for one in part.questions(example)]

    def answer(self, example: Example, replies: Sequence[Reply]) -> Answer:
        """As its task answers."""
        return self.part(example).answer(example, replies)

    def gold(self, example: Example) -> Any:
        """The right answer of its task."""
        return self.part(example).gold(example)

    def compared(self, example: Example, value: Any) -> Any:
        """What its task compares."""
        return self.part(example).compared(example, value)

    def ask(self, values: Mapping[str, Any], place: str) -> Example:
        """An example of the task that the values name; the other fields are that task's.

        Raises:
            ValueError: when they name none, or for what its task refuses.
        """
        name = values.get(NAME)
        if name not in self.parts:
            raise ValueError(f"{NAME}: got {name!r}; give one of {', '.join(self.parts)}")
        rest = {field: value for field, value in values.items() if field != NAME and value}
        return named(name, self.parts[name].ask(rest, place))

    def told(self, example: Example, answer: Answer) -> dict[str, Any]:
        """What its task tells."""
        return self.part(example).told(example, answer)

    def texts(self, example: Example) -> list[str]:
        """Those of its task."""
        return self.part(example).texts(example)

    def shown(self, example: Example) -> str:
        """As its task shows it."""
        return self.part(example).shown(example)

    def source(self, example: Example) -> str:
        """The name of its task."""
        return str(example.fields[NAME])

    def repeats(self, examples: Sequence[Example]) -> list[float]:
        """As often as its task says of each."""
        of_each = {
            name: iter(part.repeats(examples_of(name, examples)))
            for name, part in self.parts.items()
        }
        return [next(of_each[example.fields[NAME]]) for example in examples]


def named(name: str, example: Example) -> Example:
    """An example that says which task it is of."""
    return replace(example, fields={**example.fields, NAME: name})


def examples_of(name: str, examples: Sequence[Example]) -> list[Example]:
    """Those of one task."""
    return [example for example in examples if example.fields[NAME] == name]
