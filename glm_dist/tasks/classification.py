"""Classification of texts and of pairs of them: by cloze (GLM_SPEC 3.1, 3.2), or by a head.

By cloze a pattern makes of the text a sentence with a blank, and each label has a word, its
verbalizer, that could stand there: classes are compared by the probability of their words.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from glm_dist.data.samples import Compared
from glm_dist.model.settings import HeadSettings
from glm_dist.objective import labelled_sample, mask_places, supervised_sample
from glm_dist.tasks.examples import Example, take
from glm_dist.tasks.settings import TaskSettings
from glm_dist.tasks.task import Answer, Question, Reply, Task, TaskSample
from glm_dist.tasks.template import Template
from glm_dist.tasks.whole_text import (
    TEXTS,
    pooled_place,
    shown_texts,
    sorted_labels,
    text_problems,
    whole_text,
)

SHARES = "shares"
"""Field of an example that holds a probability of each label, to be learnt by a head."""


class ClassificationSettings(TaskSettings):
    """Texts, or pairs of texts, each with one label."""

    fields: ClassVar[tuple[str, ...]] = ("text", "label")
    optional_fields: ClassVar[tuple[str, ...]] = ("text_b",)
    answer_field: ClassVar[str | None] = "label"

    kind: Literal["classification"] = "classification"
    method: Literal["cloze", "head"] = "cloze"
    """cloze: the label's word is generated in a blank; head: a new linear map scores the labels."""
    labels: list[str] = []
    """All labels in an order of your own; by default those of the training examples, sorted."""
    patterns: list[str] = []
    """cloze: texts with {text}, for pairs also {text_b}, and one [MASK]; of several each is learnt,
    and their scores are added. By default one in the language of the examples."""
    verbalizers: dict[str, str] = {}
    """cloze: label: the word that stands for it; by default the label itself."""
    length_penalty: float = Field(0.0, ge=0)
    """cloze: a word's score is divided by its tokens to this power."""
    balance: float = Field(0.0, ge=0, le=1)
    """How far rare labels are repeated until they are as frequent as the others: 0 not at all, 1
    until all are."""
    shots: int | None = Field(None, ge=1)
    """Examples of each label to learn from, and as many to choose the model by, drawn by the run's
    seed; all by default."""
    in_context: int = Field(0, ge=0)
    """cloze: answered examples of each label that jobs/evaluate.py puts before the question; tuning
    itself shows none."""
    temperature: float = Field(1.0, gt=0)
    """What scores are divided by before they become probabilities; fitted on dev examples when a
    model has been tuned."""

    @model_validator(mode="after")
    def _check(self) -> "ClassificationSettings":
        problems = [p for text in self.patterns for p in Template(text).problems(TEXTS)]
        strange = [name for name in self.verbalizers if self.labels and name not in self.labels]
        if strange:
            problems.append(f"verbalizers: {', '.join(strange)} is none of the labels")
        words = Counter(self.verbalizers.values())
        twice = [word for word, count in words.items() if count > 1]
        if twice:
            problems.append(f"verbalizers: {', '.join(map(repr, twice))} stands for two labels")
        if self.in_context and self.method == "head":
            problems.append(
                "in_context: a head reads one text and no answered examples; set method: cloze, or "
                "leave it out"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


class Classification(Task[ClassificationSettings]):
    """One label for each example."""

    Settings = ClassificationSettings
    scoring = "labels"

    @classmethod
    def complete(
        cls, settings: ClassificationSettings, examples: Sequence[Example]
    ) -> ClassificationSettings:
        """With labels, patterns and verbalizers written out."""
        labels = settings.labels or sorted_labels(
            {example.text("label") for example in examples} - {""}
        )
        found: dict[str, Any] = {"labels": labels}
        if settings.method == "cloze":
            is_pair = any(example.text("text_b") for example in examples)
            is_chinese = sum(one.language == "zh" for one in examples) > len(examples) / 2
            found["patterns"] = settings.patterns or [_default_pattern(is_pair, is_chinese)]
            words = {label: settings.verbalizers.get(label, label) for label in labels}
            found["verbalizers"] = words
        return ClassificationSettings(**{**settings.model_dump(), **found})

    @classmethod
    def choose(
        cls, settings: ClassificationSettings, examples: Sequence[Example], seed: int
    ) -> list[Example]:
        """So many of each label as there are to be shots."""
        if settings.shots is None:
            return list(examples)
        by_label: dict[str, list[Example]] = {}
        for example in examples:
            by_label.setdefault(example.text("label"), []).append(example)
        chosen = [one for group in by_label.values() for one in take(group, settings.shots, seed)]
        places = {id(one) for one in chosen}
        return [example for example in examples if id(example) in places]

    @property
    def head(self) -> HeadSettings:
        """Labels are scored by a head where the method says so."""
        if self.settings.method == "cloze":
            return HeadSettings()
        return HeadSettings(kind="sequence_classification", labels=self.settings.labels)

    @property
    def labels(self) -> Sequence[str]:
        """In the order of their ids."""
        return self.settings.labels

    def problems(self, example: Example, *, is_labelled: bool = True) -> list[str]:
        """An empty text, or a label that training has not seen."""
        found = text_problems(example)
        label = example.text("label")
        if is_labelled and label not in self.settings.labels:
            known = ", ".join(map(repr, self.settings.labels[:20]))
            found.append(
                f"the label {label!r} is none that training has seen ({known}); mend it, or name "
                "all labels in task.labels"
                if label
                else "the label is empty; fill it or take the line out"
            )
        return found

    def training_samples(self, example: Example) -> list[TaskSample]:
        """One sample a pattern, or one for the head."""
        gold = self._gold(example)
        if self.settings.method == "head":
            text = whole_text(example, self.binding)
            place = pooled_place(text, self.binding)
            shares = example.fields.get(SHARES)
            labels = np.array([gold] if shares is None else [shares])
            return [TaskSample(labelled_sample(text, [place], labels), Compared(0, gold=gold))]
        return [
            self._cloze(prompt, words[gold], gold, gold)
            for prompt, words in zip(self._prompts(example), self._words, strict=True)
        ]

    def dev_samples(self, example: Example) -> list[TaskSample]:
        """By cloze one sample for each pattern and label."""
        if self.settings.method == "head":
            return self.training_samples(example)
        gold = self._gold(example)
        return [
            self._cloze(prompt, word, option, gold)
            for prompt, words in zip(self._prompts(example), self._words, strict=True)
            for option, word in enumerate(words)
        ]

    def questions(self, example: Example) -> list[Question]:
        """The prompts with the labels' words to be compared, or the text for the head."""
        if self.settings.method == "head":
            text = whole_text(example, self.binding)
            return [Question(text, (pooled_place(text, self.binding),))]
        special = self.tokenizer.special
        return [
            Question(prompt, (int(mask_places(prompt, special)[0]),), words)
            for prompt, words in zip(self._prompts(example), self._words, strict=True)
        ]

    def answer(self, example: Example, replies: Sequence[Reply]) -> Answer:
        """The label whose scores, added over the patterns, are highest."""
        found = [reply.scores[0] for reply in replies]
        if self.settings.method == "cloze":
            lengths = [np.array([len(word) + 1 for word in words]) for words in self._words]
            power = self.settings.length_penalty
            found = [one / size**power for one, size in zip(found, lengths, strict=True)]
        scores = sum(found)
        shares = np.exp((scores - np.max(scores)) / self.settings.temperature)
        shares = shares / shares.sum()
        return Answer(self.labels[int(np.argmax(scores))], tuple(map(float, shares)))

    def gold(self, example: Example) -> str:
        """Its label."""
        return example.text("label")

    def shown(self, example: Example) -> str:
        """Both texts."""
        return shown_texts(example)

    def repeats(self, examples: Sequence[Example]) -> list[float]:
        """As often as `balance` says of its label."""
        counts = Counter(example.text("label") for example in examples)
        most, power = max(counts.values()), self.settings.balance
        return [(most / counts[example.text("label")]) ** power for example in examples]

    def _gold(self, example: Example) -> int:
        label = example.text("label")
        return self.labels.index(label) if label in self.labels else -1

    @cached_property
    def _words(self) -> list[tuple[np.ndarray, ...]]:
        """For each pattern the words of all labels, as they stand at its mask."""
        words = [self.settings.verbalizers[label] for label in self.labels]
        return [
            tuple(Template(pattern).encode_answer(word, self.tokenizer) for word in words)
            for pattern in self.settings.patterns
        ]

    def _cloze(self, prompt: np.ndarray, word: np.ndarray, option: int, gold: int) -> TaskSample:
        sample = supervised_sample(prompt, word, self.binding.infill)
        return TaskSample(sample, Compared(0, option, gold))

    @cached_property
    def _room(self) -> int:
        """Tokens of a prompt, so that the longest word still has its place."""
        longest = max(len(word) for words in self._words for word in words) + 1
        return self.binding.max_tokens - longest

    def _prompts(self, example: Example) -> list[np.ndarray]:
        values = {name: example.text(name) for name in TEXTS}
        return [
            Template(pattern).render(values, self.tokenizer, self._room, example.place)
            for pattern in self.settings.patterns
        ]


def _default_pattern(is_pair: bool, is_chinese: bool) -> str:
    if is_pair:
        return "{text} [MASK] {text_b}"
    return "[MASK]。{text}" if is_chinese else "[MASK]: {text}"
