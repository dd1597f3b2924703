"""A label for each token: named entities, parts of speech, chunks, words of Chinese text.

The text is seen in both directions and each token is labelled at its first piece. Of tags that
spell spans (BIO, BIOES, BMES) the best sequence that spells whole spans is taken.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from glm_dist.model.settings import HeadSettings
from glm_dist.objective import labelled_sample
from glm_dist.tasks.examples import HAN_LETTERS, Example
from glm_dist.tasks.settings import TaskSettings
from glm_dist.tasks.task import Answer, Question, Reply, Task, TaskSample

OPENS, GOES_ON, CLOSES = ("B", "S"), ("I", "M", "E"), ("E", "S")
"""First letters of tags that begin a span, need one that goes on, and end it."""
FORBIDDEN = -1e9
_UNIT = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+|[^\w\s]")
"""A Han character, a word, or a sign."""


class Span(NamedTuple):
    """Tokens [start, end) of one kind."""

    start: int
    end: int
    kind: str


class LabellingSettings(TaskSettings):
    """Sentences of tokens, each with a tag."""

    fields: ClassVar[tuple[str, ...]] = ("tokens", "tags")
    answer_field: ClassVar[str | None] = "tags"

    kind: Literal["labelling"] = "labelling"
    labels: list[str] = []
    """All tags; by default those of the training examples, sorted."""
    constrained: bool = True
    """Whether tags that spell spans are forced to spell whole ones."""


class Window(NamedTuple):
    """A part of a sentence that fits the model."""

    tokens: np.ndarray
    places: np.ndarray
    """First piece of each of its tokens."""
    start: int
    """Its first token in the sentence."""


class Labelling(Task[LabellingSettings]):
    """A tag for each token."""

    Settings = LabellingSettings
    scoring = "tags"

    @classmethod
    def complete(
        cls, settings: LabellingSettings, examples: Sequence[Example]
    ) -> LabellingSettings:
        """With the tags written out; of those that spell spans each kind gets all letters."""
        tags = {tag for example in examples for tag in example.fields["tags"] or []}
        if spells_spans(list(tags)):
            spelt = [tag.partition("-") for tag in tags - {"O"}]
            tags |= {f"{letter}-{kind}" for letter, _, _ in spelt for _, _, kind in spelt}
        labels = settings.labels or sorted(tags, key=lambda tag: (tag != "O", tag))
        return LabellingSettings(**{**settings.model_dump(), "labels": labels})

    @property
    def head(self) -> HeadSettings:
        """A linear map on every token."""
        return HeadSettings(kind="token_classification", labels=self.settings.labels)

    @property
    def labels(self) -> Sequence[str]:
        """In the order of their ids."""
        return self.settings.labels

    @cached_property
    def spells_spans(self) -> bool:
        """Whether the tags are of one of the schemes that spell spans."""
        return spells_spans(self.labels)

    @cached_property
    def transitions(self) -> np.ndarray:
        """What is added to a score for going from one tag to another, [labels + 1, labels + 1].

        The last row is the beginning of a sentence, the last column its end.
        """
        count = len(self.labels)
        table = np.zeros((count + 1, count + 1))
        if not (self.settings.constrained and self.spells_spans):
            return table
        closes = any(tag[0] in CLOSES for tag in self.labels)
        names: list[str | None] = [*self.labels, None]
        for before, first in enumerate(names):
            for after, second in enumerate(names):
                if not _may_follow(first, second, closes):
                    table[before, after] = FORBIDDEN
        return table

    def problems(self, example: Example, *, is_labelled: bool = True) -> list[str]:
        """An empty sentence, or a tag that training has not seen."""
        if not example.fields["tokens"]:
            return ["the sentence has no tokens; take it out"]
        tags = example.fields.get("tags") or []
        if not is_labelled:
            return []
        strange = sorted(set(tags) - set(self.labels))
        known = ", ".join(self.labels)
        found = [
            f"the tag {tag!r} is none that training has seen ({known}); mend it, or name all tags "
            "in task.labels"
            for tag in strange
        ]
        if len(tags) != len(example.fields["tokens"]):
            found.append(
                f"there are {len(example.fields['tokens'])} tokens and {len(tags)} tags; give each "
                "token one"
            )
        return found

    def training_samples(self, example: Example) -> list[TaskSample]:
        """The sentence, or its parts where it is longer than the model's rows."""
        ids = np.array([self._id(tag) for tag in example.fields["tags"]])
        return [
            TaskSample(
                labelled_sample(
                    window.tokens,
                    window.places,
                    ids[window.start : window.start + len(window.places)],
                )
            )
            for window in self._windows(example)
        ]

    def questions(self, example: Example) -> list[Question]:
        """One for each part of the sentence."""
        return [
            Question(window.tokens, tuple(window.places.tolist()))
            for window in self._windows(example)
        ]

    def answer(self, example: Example, replies: Sequence[Reply]) -> Answer:
        """A tag for each token."""
        scores = np.concatenate([reply.scores for reply in replies])
        return Answer([self.labels[number] for number in self.decode(scores)])

    def ask(self, values: Mapping[str, Any], place: str) -> Example:
        """Tokens may be given as a running text, which is split into words and characters."""
        tokens = values.get("tokens")
        if isinstance(tokens, str):
            values = {**values, "tokens": _UNIT.findall(tokens)}
        return super().ask(values, place)

    def told(self, example: Example, answer: Answer) -> dict[str, Any]:
        """Also the tokens, and of tags that spell spans these."""
        tokens = [str(token) for token in example.fields["tokens"]]
        told = {**super().told(example, answer), "tokens": tokens}
        if self.spells_spans:
            told["spans"] = [
                {**span._asdict(), "text": "".join(_with_spaces(tokens[span.start : span.end]))}
                for span in find_spans(answer.value)
            ]
        return told

    def decode(self, scores: np.ndarray) -> np.ndarray:
        """Ids of the best allowed tags, from scores [tokens, labels] (Viterbi)."""
        moves = self.transitions[:-1, :-1]
        best = scores[0] + self.transitions[-1, :-1]
        back = np.zeros(scores.shape, dtype=np.int64)
        for token in range(1, len(scores)):
            paths = best[:, None] + moves
            back[token] = paths.argmax(0)
            best = paths.max(0) + scores[token]
        tags = [int((best + self.transitions[:-1, -1]).argmax())]
        for token in range(len(scores) - 1, 0, -1):
            tags.append(int(back[token, tags[-1]]))
        return np.array(tags[::-1])

    def gold(self, example: Example) -> list[str]:
        """Its tags."""
        return list(example.fields["tags"])

    def texts(self, example: Example) -> list[str]:
        """The sentence."""
        return [self.shown(example)]

    def shown(self, example: Example) -> str:
        """The tokens, with spaces where a reader expects them."""
        return "".join(_with_spaces(example.fields["tokens"]))

    def _id(self, tag: str) -> int:
        return self.labels.index(tag) if tag in self.labels else 0

    def _windows(self, example: Example) -> list[Window]:
        pieces = self.tokenizer.encode_batch(_with_spaces(example.fields["tokens"]))
        room = self.binding.max_tokens - 1
        windows, first, size = [], 0, 0
        for number, piece in enumerate(pieces):
            if size + len(piece) > room and number > first:
                windows.append(self._window(pieces, first, number, room))
                first, size = number, 0
            size += max(1, len(piece))
        return [*windows, self._window(pieces, first, len(pieces), room)]

    def _window(self, pieces: Sequence[np.ndarray], start: int, end: int, room: int) -> Window:
        """A token without any piece of its own is labelled at an unknown one."""
        special = self.tokenizer.special
        inside = [
            piece[:room] if len(piece) else np.array([special.unk]) for piece in pieces[start:end]
        ]
        tokens = np.concatenate([[special.enc], *inside]).astype(np.int32)
        places = np.cumsum([1, *map(len, inside)])[:-1]
        return Window(tokens, places, start)


def spells_spans(labels: Sequence[str]) -> bool:
    """Whether tags are of BIO, BIOES or BMES."""
    return any(tag.startswith("B-") for tag in labels) and all(
        tag == "O" or tag[:2] in ("B-", "I-", "M-", "E-", "S-") for tag in labels
    )


def find_spans(tags: Sequence[str]) -> list[Span]:
    """The spans that tags spell; one that goes on without a beginning begins there."""
    spans, start, kind = list[Span](), -1, ""
    for place, tag in enumerate([*tags, "O"]):
        letter, _, name = tag.partition("-")
        goes_on = start >= 0 and letter in GOES_ON and name == kind
        if start >= 0 and not goes_on:
            spans.append(Span(start, place, kind))
            start = -1
        if start < 0 and letter != "O":
            start, kind = place, name
        if start >= 0 and letter in CLOSES:
            spans.append(Span(start, place + 1, kind))
            start = -1
    return spans


def _may_follow(first: str | None, second: str | None, closes: bool) -> bool:
    """Whether a tag may stand behind another; None is the edge of the sentence."""
    is_open = first is not None and first[0] in ("B", "I", "M")
    if second is not None and second[0] in GOES_ON:
        return is_open and first is not None and first[2:] == second[2:]
    return not (is_open and closes)


def _with_spaces(tokens: Sequence[Any]) -> list[str]:
    """Tokens as they stand in running text: words apart, Han characters together."""
    texts = [str(token) for token in tokens]
    before = ["", *texts]
    return [
        text
        if not number or HAN_LETTERS.match(text[:1]) or HAN_LETTERS.match(before[number][-1:])
        else f" {text}"
        for number, text in enumerate(texts)
    ]
