"""Translation, in one direction or both with one model; tags in the prompt say which languages."""

from typing import ClassVar, Literal

from pydantic import model_validator

from glm_dist.tasks.examples import Example
from glm_dist.tasks.task import TaskSample
from glm_dist.tasks.text_to_text import TextToText, TextToTextSettings


class TranslationSettings(TextToTextSettings):
    """Pairs of sentences that say the same."""

    optional_fields: ClassVar[tuple[str, ...]] = ("source_language", "target_language")

    kind: Literal["translation"] = "translation"
    source_language: str = "en"
    """Code of the language of `source`, where no column says it."""
    target_language: str = "zh"
    """Code of the language of `target`, where no column says it."""
    both_directions: bool = False
    """Each pair is learnt from target to source too; scores are those of source to target."""
    template: str = "{source_language} to {target_language}: {source}\n[gMASK]"

    @property
    def kept_together(self) -> tuple[str, ...]:
        """Sentences of both languages."""
        return ("source", "target")

    @model_validator(mode="after")
    def _check_tags(self) -> "TranslationSettings":
        if self.both_directions and "{target_language}" not in self.template:
            raise ValueError(
                "template: does not show {target_language}, so the model cannot know which of "
                "both_directions is wanted; put it in"
            )
        return self


class Translation(TextToText[TranslationSettings]):
    """A sentence in another language."""

    Settings = TranslationSettings
    scoring = "translation"

    def values(self, example: Example) -> dict[str, str]:
        """With the languages, which most data has no column for."""
        settings = self.settings
        return {
            **super().values(example),
            "source_language": example.text("source_language") or settings.source_language,
            "target_language": example.text("target_language") or settings.target_language,
        }

    def training_samples(self, example: Example) -> list[TaskSample]:
        """One sample for each direction."""
        samples = super().training_samples(example)
        if self.settings.both_directions:
            samples += super().training_samples(self._turned(example))
        return samples

    def dev_samples(self, example: Example) -> list[TaskSample]:
        """From source to target."""
        return super().training_samples(example)

    def _turned(self, example: Example) -> Example:
        values = self.values(example)
        fields = {
            "source": self.references(example)[0],
            "target": values["source"],
            "source_language": values["target_language"],
            "target_language": values["source_language"],
        }
        return Example(fields, example.place)
