"""Grammar correction: a sentence with mistakes in, the right one out.

Pairs may be given; of right sentences alone mistakes are made, the same ones of the same sentence
every time: words left out, doubled, changed for others of the sentence, or in the wrong order.
"""

import difflib
import random
import zlib
from typing import Any, ClassVar, Literal

from pydantic import Field

from glm_dist.tasks.examples import HAN_LETTERS, Example
from glm_dist.tasks.text_to_text import TextToText, TextToTextSettings

Edit = tuple[int, int, str]
"""Units [start, end) of the sentence, and what stands there instead."""


class CorrectionSettings(TextToTextSettings):
    """Pairs of a wrong and a right sentence, or right ones alone."""

    fields: ClassVar[tuple[str, ...]] = ("target",)
    optional_fields: ClassVar[tuple[str, ...]] = ("source",)

    kind: Literal["correction"] = "correction"
    template: str = "{source}\n[gMASK]"
    max_mistakes: int = Field(2, ge=0)
    """Most mistakes made in a sentence that has no wrong form of its own; some get none."""


class Correction(TextToText[CorrectionSettings]):
    """The right sentence."""

    Settings = CorrectionSettings
    scoring = "edits"

    def values(self, example: Example) -> dict[str, str]:
        """The wrong sentence, made of the right one where it is not given."""
        source = example.text("source")
        if not source:
            source = corrupt(example.text("target"), self.settings.max_mistakes)
        return {"source": source}

    def problems(self, example: Example, *, is_labelled: bool = True) -> list[str]:
        """A sentence that is neither given right nor wrong."""
        if example.text("target") or (not is_labelled and example.text("source")):
            return []
        return ["the sentence is empty; fill it or take the example out"]

    def compared(self, example: Example, value: Any) -> list[Edit]:
        """The edits that an answer makes; answers are judged by them."""
        text = value[0] if isinstance(value, list) else value
        return edits(self.values(example)["source"], text)


def corrupt(text: str, max_mistakes: int) -> str:
    """The sentence with up to so many mistakes, drawn by its own text."""
    rng = random.Random(zlib.crc32(text.encode()) ^ 0x5EED)
    words = split(text)
    for _ in range(rng.randint(0, max_mistakes)):
        if len(words) < 2:
            break
        place = rng.randrange(len(words) - 1)
        kind = rng.randrange(4)
        if kind == 0:
            del words[place]
        elif kind == 1:
            words.insert(place, words[place])
        elif kind == 2:
            words[place] = words[rng.randrange(len(words))]
        else:
            words[place], words[place + 1] = words[place + 1], words[place]
    return ("" if is_chinese(text) else " ").join(words)


def edits(source: str, corrected: str) -> list[Edit]:
    """Which units of the source an answer changes, and to what."""
    ours, theirs = split(source), split(corrected)
    joint = "" if is_chinese(source) else " "
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    return [
        (start, end, joint.join(theirs[first:last]))
        for kind, start, end, first, last in matcher.get_opcodes()
        if kind != "equal"
    ]


def split(text: str) -> list[str]:
    """Words, or where the text is Chinese its characters."""
    return list(text.replace(" ", "")) if is_chinese(text) else text.split()


def is_chinese(text: str) -> bool:
    """Whether its units are characters."""
    return bool(HAN_LETTERS.search(text))
