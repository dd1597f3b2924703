"""Tasks whose answer is a text: a prompt with a mask, and what is generated there.

Each of them is a template, a place for its answer and the scores it is judged by; the files beside
this one say which.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import Field, model_validator

from glm_dist.objective import mask_places, supervised_sample
from glm_dist.tasks.examples import Example
from glm_dist.tasks.postprocess import PostprocessSettings, postprocess
from glm_dist.tasks.settings import DecodingSettings, TaskSettings
from glm_dist.tasks.task import Answer, Question, Reply, Task, TaskSample
from glm_dist.tasks.template import Template


class TextToTextSettings(TaskSettings):
    """A text in, a text out."""

    fields: ClassVar[tuple[str, ...]] = ("source", "target")
    answer_field: ClassVar[str | None] = "target"

    template: str = "{source}\n[gMASK]"
    """The prompt, with the fields of an example and one mask where the answer is generated."""
    decoding: DecodingSettings = DecodingSettings()
    postprocess: PostprocessSettings = PostprocessSettings()
    max_answer_share: float = Field(0.5, gt=0, lt=1)
    """Share of a row's tokens that an answer may take in training; longer ones lose their end."""

    @model_validator(mode="after")
    def _check_template(self) -> "TextToTextSettings":
        problems = Template(self.template).problems(self.asked_fields)
        if problems:
            raise ValueError("template: " + "; ".join(problems))
        return self


T = TypeVar("T", bound=TextToTextSettings)


class TextToText(Task[T]):
    """Generates the answer at the mask of a template."""

    def problems(self, example: Example, *, is_labelled: bool = True) -> list[str]:
        """Fields without text."""
        settings = self.settings
        needed = [name for name in settings.fields if name != settings.answer_field]
        found = [
            f"the {name} is empty; fill it or take the example out"
            for name in needed
            if not example.text(name)
        ]
        if is_labelled and not self.references(example):
            found.append(f"the {settings.answer_field} is empty; fill it or take the example out")
        return found

    def references(self, example: Example) -> list[str]:
        """All right answers; training learns the first."""
        value = example.fields.get(self.settings.answer_field or "")
        values = value if isinstance(value, list) else [value]
        return [str(one).strip() for one in values if one is not None and str(one).strip()]

    def values(self, example: Example) -> dict[str, str]:
        """What the template shows."""
        return {name: example.text(name) for name in self.settings.asked_fields}

    def training_samples(self, example: Example) -> list[TaskSample]:
        """The prompt, and the first right answer in its place."""
        limit = self.binding.max_tokens
        answer = self._template.encode_answer(self.references(example)[0], self.tokenizer)
        answer = answer[: int(limit * self.settings.max_answer_share) - 1]
        prompt = self._prompt(example, limit - len(answer) - 1)
        return [TaskSample(supervised_sample(prompt, answer, self.binding.infill))]

    def questions(self, example: Example) -> list[Question]:
        """The prompt with its mask; a row holds the longest answer beside it."""
        longest = int(self.binding.max_tokens * self.settings.max_answer_share)
        prompt = self._prompt(example, self.binding.max_tokens - longest)
        return [Question(prompt, (int(mask_places(prompt, self.tokenizer.special)[-1]),))]

    def answer(self, example: Example, replies: Sequence[Reply]) -> Answer:
        """What was generated, put in order."""
        return Answer(postprocess(replies[0].texts[0], self.settings.postprocess))

    def gold(self, example: Example) -> Any:
        """All right answers."""
        return self.references(example)

    def shown(self, example: Example) -> str:
        """The fields that the template shows."""
        return " / ".join(filter(None, self.values(example).values()))

    def _prompt(self, example: Example, room: int) -> Any:
        return self._template.render(self.values(example), self.tokenizer, room, example.place)

    @property
    def _template(self) -> Template:
        return Template(self.settings.template)
