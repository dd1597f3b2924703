"""Summaries and titles; the prompt may say how long they are to be."""

from typing import ClassVar, Literal

from glm_dist.tasks.examples import HAN_LETTERS, Example
from glm_dist.tasks.text_to_text import TextToText, TextToTextSettings


class SummarisationSettings(TextToTextSettings):
    """Texts, each with a summary or several."""

    optional_fields: ClassVar[tuple[str, ...]] = ("length",)

    kind: Literal["summarisation"] = "summarisation"
    template: str = "{source}\nTL;DR: [gMASK]"
    """The prompt; {length} in it is the number of words wanted, of Chinese characters: in training
    the number that the summary has, later `wanted_length`."""
    wanted_length: int = 20
    """What {length} says when no summary is known."""


class Summarisation(TextToText[SummarisationSettings]):
    """A shorter text."""

    Settings = SummarisationSettings
    scoring = "summary"

    def values(self, example: Example) -> dict[str, str]:
        """With the length, rounded so that it is a wish and not a riddle."""
        length = example.text("length")
        if not length:
            references = self.references(example)
            known = _length(references[0]) if references else self.settings.wanted_length
            length = str(max(5, 5 * round(known / 5)))
        return {**super().values(example), "length": length}

    def questions(self, example: Example) -> list:
        """Without a look at the summary's own length."""
        wished = {**example.fields, "target": None}
        return super().questions(Example(wished, example.place))


def _length(text: str) -> int:
    return len(HAN_LETTERS.findall(text)) or len(text.split())
