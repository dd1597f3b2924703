"""Which of several replies comes next in a dialogue: dialogues understood, without judging texts.

A model that has learnt what assistants say finds each reply more or less likely behind the turns
before it. Data may hold the candidates; else one turn of each dialogue is asked about, beside
replies out of other dialogues, the same ones every time.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from glm_dist.tasks.dialogue import Turn, Turns, TurnsSettings, chat_prompt, read_turns
from glm_dist.tasks.examples import Example
from glm_dist.tasks.task import Answer, Question, Reply


class ReplyChoiceSettings(TurnsSettings):
    """Dialogues, perhaps with replies to choose from: the assistant's last turn and others."""

    optional_fields: ClassVar[tuple[str, ...]] = ("system", "candidates")

    kind: Literal["reply_choice"] = "reply_choice"
    num_candidates: int = Field(10, ge=2)
    """Replies to choose from where the data holds none, the right one among them."""
    num_turns: int = Field(0, ge=0)
    """Turns before the reply that are read when one is chosen, the last ones; 0 for all."""
    length_penalty: float = Field(1.0, ge=0)
    """A reply's score is divided by its tokens to this power."""


class ReplyChoice(Turns[ReplyChoiceSettings]):
    """The candidates, the likeliest first."""

    Settings = ReplyChoiceSettings
    scoring = "ranking"

    @classmethod
    def relate(cls, settings: ReplyChoiceSettings, examples: Sequence[Example]) -> list[Example]:
        """With candidates, up to the turn that is asked about; what cannot be read stays as is."""
        said = [_answers(example) for example in examples]
        pool = sorted({text for answers in said for _, text in answers})
        return [
            _with_candidates(example, answers, pool, settings.num_candidates - 1)
            for example, answers in zip(examples, said, strict=True)
        ]

    def problems(self, example: Example, *, is_labelled: bool = True) -> list[str]:
        """Those of dialogues, too few candidates, or none of them right."""
        found = super().problems(example, is_labelled=is_labelled)
        candidates = example.fields.get("candidates") or []
        if not found and len(candidates) < 2:
            found.append("there are no two replies to choose from; give more dialogues")
        elif not found and is_labelled and self.gold(example) not in candidates:
            found.append("the assistant's turn is none of the candidates; add it to them")
        return found

    def questions(self, example: Example) -> list[Question]:
        """How likely each candidate is behind the turns before it."""
        limit = self.binding.max_tokens
        longest = int(limit * self.settings.max_answer_share) - 1
        prompt = chat_prompt(self.before(example), self.tokenizer, limit - longest - 1)
        options = tuple(
            self.tokenizer.encode(text)[:longest] for text in example.fields["candidates"]
        )
        return [Question(prompt, (len(prompt) - 1,), options)]

    def answer(self, example: Example, replies: Sequence[Reply]) -> Answer:
        """All candidates in their order."""
        candidates = example.fields["candidates"]
        lengths = np.array([len(self.tokenizer.encode(text)) + 1 for text in candidates])
        scores = replies[0].scores[0] / lengths**self.settings.length_penalty
        return Answer([candidates[number] for number in np.argsort(-scores, kind="stable")])

    def gold(self, example: Example) -> str:
        """What the assistant said."""
        return self.turns(example)[self._asked(example)].text

    def shown(self, example: Example) -> str:
        """The turns before the reply."""
        return "\n".join(f"{turn.role}: {turn.text}" for turn in self.before(example))

    def before(self, example: Example) -> list[Turn]:
        """The turns that are read."""
        turns = self.turns(example)[: self._asked(example)]
        return turns[-self.settings.num_turns :]

    def _asked(self, example: Example) -> int:
        """Number of the turn that is asked about, the last of the assistant's that is known."""
        answers = [n for n, turn in enumerate(self.turns(example)) if turn.role == "assistant"]
        number = example.fields.get("asked")
        return answers[-1 if number is None else number]


def _answers(example: Example) -> list[tuple[int, str]]:
    """What the assistant answers in a dialogue, each with its number among all that it says."""
    try:
        turns = read_turns(example.fields["messages"])
    except ValueError:
        return []
    texts = [turn.text for turn in turns if turn.role == "assistant"]
    answered = list(enumerate(texts))
    return answered[1:] if turns[0].role == "assistant" else answered


def _with_candidates(
    example: Example,
    answers: Sequence[tuple[int, str]],
    pool: Sequence[str],
    num_others: int,
) -> Example:
    """One of its answers among others of the pool, none of which is its own."""
    if example.fields.get("candidates") or not answers:
        return example
    rng = random.Random(zlib.crc32("\n".join(text for _, text in answers).encode()))
    asked, right = rng.choice(answers)
    own = {text for _, text in answers}
    drawn = rng.sample(pool, min(len(pool), num_others + len(own)))
    candidates = [right, *[text for text in drawn if text not in own][:num_others]]
    rng.shuffle(candidates)
    return replace(example, fields={**example.fields, "candidates": candidates, "asked": asked})
