"""Questions about a text: answered in the model's own words, or by a piece of the text."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from glm_dist.tasks.examples import Example
from glm_dist.tasks.settings import DecodingSettings
from glm_dist.tasks.task import Answer, Reply
from glm_dist.tasks.text_to_text import TextToText, TextToTextSettings


class QuestionAnsweringSettings(TextToTextSettings):
    """Questions, contexts and answers, as in SQuAD."""

    fields: ClassVar[tuple[str, ...]] = ("question", "context", "answers")
    answer_field: ClassVar[str | None] = "answers"

    kind: Literal["question_answering"] = "question_answering"
    template: str = "{context}\n{question} [MASK]"
    extractive: bool = True
    """Answers stand in their contexts word for word: one that does not is refused in training, and
    a generated one is turned to the piece of the context that it shares most with."""
    decoding: DecodingSettings = DecodingSettings(max_tokens=32)


class QuestionAnswering(TextToText[QuestionAnsweringSettings]):
    """A short answer."""

    Settings = QuestionAnsweringSettings
    scoring = "answer"

    def problems(self, example: Example, *, is_labelled: bool = True) -> list[str]:
        """Also an answer that is not in its context."""
        found = super().problems(example, is_labelled=is_labelled)
        context = example.text("context")
        if is_labelled and self.settings.extractive and context:
            found += [
                f"the answer {answer!r} is not in its context; mend it, or set "
                "task.extractive: false for answers in other words"
                for answer in self.references(example)[:1]
                if answer not in context
            ]
        return found

    def answer(self, example: Example, replies: Sequence[Reply]) -> Answer:
        """The answer; of an extractive task the nearest piece of the context."""
        generated: Any = super().answer(example, replies).value
        if self.settings.extractive:
            generated = nearest_piece(example.text("context"), generated)
        return Answer(generated)


def nearest_piece(context: str, answer: str) -> str:
    """The answer itself where the context holds it, else the longest piece they have in common."""
    if not answer or answer in context:
        return answer
    best = ""
    for start in range(len(answer)):
        # A longer piece than the best may begin here; shorter ones are of no use.
        end = start + len(best) + 1
        while end <= len(answer) and answer[start:end] in context:
            best, end = answer[start:end], end + 1
    return best.strip() or answer
