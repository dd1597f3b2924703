"""Blank filling: words missing from a text, several at once, filled from left to right.

Data may name the blanks and what stands in them; of plain text spans are drawn, the same ones of
the same text every time.
"""

import random
import re
import zlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from glm_dist.errors import DataError
from glm_dist.objective import filled_sample, mask_places
from glm_dist.tasks.examples import Example
from glm_dist.tasks.settings import DecodingSettings, TaskSettings
from glm_dist.tasks.task import Answer, Question, Reply, Task, TaskSample
from glm_dist.tokenizer import MASKS, Masked

BLANK = "[MASK]"
_UNIT = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
"""A word, or one Han character."""


class InfillingSettings(TaskSettings):
    """Texts with [MASK] for blanks and a list of answers, or plain texts."""

    optional_fields: ClassVar[tuple[str, ...]] = ("answers",)
    answer_field: ClassVar[str | None] = "answers"

    kind: Literal["infilling"] = "infilling"
    num_blanks: int = Field(2, ge=1)
    """Blanks drawn in a plain text, fewer in a short one."""
    max_blank_units: int = Field(4, ge=1)
    """Longest blank drawn, in words or Han characters."""
    decoding: DecodingSettings = DecodingSettings(max_tokens=16)


class Infilling(Task[InfillingSettings]):
    """What stands in each blank."""

    Settings = InfillingSettings
    scoring = "blanks"

    def problems(self, example: Example, *, is_labelled: bool = True) -> list[str]:
        """No blank, or not as many answers as blanks."""
        if not example.text("text"):
            return ["the text is empty; fill it or take the example out"]
        text, answers = self._blanked(example)
        blanks = sum(text.count(mask) for mask in MASKS)
        if not blanks:
            return ["the text is too short for a blank; take it out"]
        if is_labelled and len(answers) != blanks:
            return [f"the text has {blanks} blanks and {len(answers)} answers"]
        return []

    def training_samples(self, example: Example) -> list[TaskSample]:
        """All blanks in one sample."""
        text, answers = self._blanked(example)
        masked = self.tokenizer.encode_masked(text)
        encoded = [
            self.tokenizer.encode_answer(answer, is_behind)
            for answer, is_behind in zip(answers, masked.behind_space, strict=True)
        ]
        room = self.binding.max_tokens - sum(len(answer) + 1 for answer in encoded)
        prompt, places = self._prompt(masked, room, example.place)
        sample = filled_sample(prompt, places, encoded[: len(places)], self.binding.infill)
        return [TaskSample(sample)]

    def questions(self, example: Example) -> list[Question]:
        """The text with its blanks."""
        masked = self.tokenizer.encode_masked(self._blanked(example)[0])
        blanks = len(masked.places)
        room = self.binding.max_tokens - blanks * (self.decoding.max_tokens + 1)
        room = max(room, self.binding.max_tokens // 2)
        prompt, places = self._prompt(masked, room, example.place)
        return [Question(prompt, tuple(places.tolist()))]

    def answer(self, example: Example, replies: Sequence[Reply]) -> Answer:
        """A text for each blank; empty where the blank did not fit."""
        missing = len(self.gold(example)) - len(replies[0].texts)
        return Answer([text.strip() for text in replies[0].texts] + [""] * max(0, missing))

    def gold(self, example: Example) -> list[str]:
        """What stood in each blank."""
        return self._blanked(example)[1]

    def shown(self, example: Example) -> str:
        """The text with its blanks."""
        return self._blanked(example)[0]

    def _prompt(self, masked: Masked, room: int, place: str) -> tuple[np.ndarray, np.ndarray]:
        """The text as far as there is room, and its blanks."""
        tokens = masked.tokens[: max(0, room - 1)]
        prompt = np.concatenate(([self.tokenizer.special.enc], tokens)).astype(np.int32)
        places = mask_places(prompt, self.tokenizer.special)
        if not len(places):
            raise DataError(
                f"{place}: a row of {self.binding.max_tokens} tokens does not hold a blank of it "
                "and its answer; raise rows.sequence_length or shorten it"
            )
        return prompt, places

    def _blanked(self, example: Example) -> tuple[str, list[str]]:
        """The text with masks, and the answers as far as they are known."""
        text, given = example.text("text"), example.fields.get("answers")
        if any(mask in text for mask in MASKS):
            answers: list[Any] = given if isinstance(given, list) else [given]
            return text, [str(answer) for answer in answers if answer is not None]
        text = self._cut(text)
        return draw_blanks(text, self.settings.num_blanks, self.settings.max_blank_units)

    def _cut(self, text: str) -> str:
        """The beginning of a plain text, so that a row holds it and what is in its blanks."""
        tokens = self.tokenizer.encode(text)
        answers = self.settings.num_blanks * (self.decoding.max_tokens + 2)
        room = max(self.binding.max_tokens - answers, self.binding.max_tokens // 2) - 1
        return text if len(tokens) <= room else self.tokenizer.decode(tokens[:room])


def draw_blanks(text: str, count: int, longest: int) -> tuple[str, list[str]]:
    """A text with at most so many blanks that do not touch, and what stood in them."""
    units = list(_UNIT.finditer(text))
    rng = random.Random(zlib.crc32(text.encode()))
    # Each blank has a part of the text to itself, and a unit at its end stays for the next one.
    count = min(count, len(units) // 2)
    pieces, answers, done = [], [], 0
    for number in range(count):
        first, end = number * len(units) // count, (number + 1) * len(units) // count - 1
        length = min(rng.randint(1, longest), end - first)
        start = rng.randint(first, end - length)
        span = slice(units[start].start(), units[start + length - 1].end())
        pieces += [text[done : span.start], BLANK]
        answers.append(text[span])
        done = span.stop
    return "".join([*pieces, text[done:]]), answers
