"""Classification by cloze behind worked examples: how much a model learns from its prompt alone.

It stands apart from the task because which examples are shown is no setting of a model but of the
asking, and drawn anew for every seed.
"""

import random
from collections.abc import Sequence

import numpy as np

from glm_dist.tasks.classification import Classification, ClassificationSettings
from glm_dist.tasks.examples import Example
from glm_dist.tasks.task import Binding
from glm_dist.tasks.template import Template
from glm_dist.tasks.whole_text import TEXTS
from glm_dist.tokenizer import MASKS

BETWEEN = "\n"
"""Stands behind every worked example."""
ANY_LENGTH = 1 << 20
"""A worked example is shown whole or not at all."""


def draw_shown(
    settings: ClassificationSettings, examples: Sequence[Example], seed: int
) -> list[Example]:
    """Worked examples, `in_context` of each label: in rounds of one of each, all drawn by the seed.

    A label with fewer examples has those that there are.
    """
    rng = random.Random(seed)
    groups = [[one for one in examples if one.text("label") == label] for label in settings.labels]
    drawn = [rng.sample(group, min(settings.in_context, len(group))) for group in groups]
    rounds = []
    for number in range(settings.in_context):
        one_each = [group[number] for group in drawn if number < len(group)]
        rng.shuffle(one_each)
        rounds += one_each
    return rounds


class InContext(Classification):
    """One label for each example, asked for behind worked examples.

    Args:
        settings: with labels, patterns and words of labels written out.
        binding: its `max_tokens` hold the worked examples too.
        shown: the worked examples, the most wanted first.
    """

    def __init__(
        self, settings: ClassificationSettings, binding: Binding, shown: Sequence[Example]
    ) -> None:
        super().__init__(settings, binding)
        self.shown_examples = list(shown)
        self.num_questions = 0
        """Prompts that were made, one for each example and pattern."""
        self.num_shown = 0
        """Worked examples in all of them."""
        self.num_dropped = 0
        """Worked examples that did not fit, over all prompts."""

    @property
    def counts(self) -> dict[str, int]:
        """How many prompts there were, and worked examples that fitted and that did not."""
        return {
            "questions": self.num_questions,
            "shown": self.num_shown,
            "dropped": self.num_dropped,
        }

    @property
    def told_counts(self) -> str:
        """The same as a sentence."""
        each = self.num_shown / max(1, self.num_questions)
        text = f"{each:.1f} of {len(self.shown_examples)} answered examples before each question"
        if self.num_dropped:
            text += (
                f"; {self.num_dropped:,} over all questions did not fit {self.binding.max_tokens} "
                "tokens and were left out (max_tokens)"
            )
        return text

    def _prompts(self, example: Example) -> list[np.ndarray]:
        """The question is laid out first; what is left holds whole worked examples."""
        prompts = super()._prompts(example)
        return [
            self._behind_shown(prompt, pattern, example)
            for prompt, pattern in zip(prompts, self.settings.patterns, strict=True)
        ]

    def _behind_shown(self, prompt: np.ndarray, pattern: str, example: Example) -> np.ndarray:
        room = self._room - len(prompt)
        pieces: list[np.ndarray] = []
        for one in self.shown_examples:
            # A text that is asked about would be its own answer.
            if all(one.text(name) == example.text(name) for name in TEXTS):
                continue
            piece = self._worked(one, pattern)
            if len(piece) > room:
                self.num_dropped += 1
                continue
            pieces.append(piece)
            room -= len(piece)
        self.num_questions += 1
        self.num_shown += len(pieces)
        return np.concatenate([prompt[:1], *pieces, prompt[1:]]).astype(np.int32)

    def _worked(self, example: Example, pattern: str) -> np.ndarray:
        """The pattern with the text and the word of its label, without a first token of its own."""
        word = self.settings.verbalizers[example.text("label")]
        mask = next(mask for mask in MASKS if mask in pattern)
        values = {name: example.text(name) for name in TEXTS}
        whole = Template(pattern.replace(mask, word) + BETWEEN)
        return whole.render(values, self.tokenizer, ANY_LENGTH, example.place)[1:]
