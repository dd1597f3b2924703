"""The page of a scored task: scores, where it is wrong and how sure it was, in Markdown.

It stands apart from the figures so that those are read by programs and this by people.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from glm_dist.evaluate.calibration import expected_calibration_error, reliability
from glm_dist.evaluate.label_sets import per_label
from glm_dist.evaluate.mistakes import LengthRow, WrongExample, per_class, per_length
from glm_dist.evaluate.score import Score
from glm_dist.tasks import Answer, Task
from glm_dist.tasks.examples import Example

NUM_SHOWN = 10
LONGEST_SHOWN = 160


def page(
    task: Task[Any],
    examples: Sequence[Example],
    answers: Sequence[Answer],
    lines: Sequence[str],
    origin: dict[str, Any],
) -> str:
    """The page without the parts that only some tasks have.

    Args:
        task: whose answers they are.
        examples: with their right answers.
        answers: in the same order.
        lines: each score with its interval.
        origin: what the scores are of.
    """
    shown = [task.shown(example) for example in examples[:NUM_SHOWN]]
    golds = [_text(task.gold(example)) for example in examples[:NUM_SHOWN]]
    said = [_text(answer.value) for answer in answers[:NUM_SHOWN]]
    return "\n".join(
        [
            f"# {task.settings.kind}, {len(examples):,} examples\n",
            *(f"- {line}" for line in lines),
            "",
            *_table(("what", "value"), ((name, _text(value)) for name, value in origin.items())),
            "\n## The first examples\n",
            *_table(("asked", "right", "said"), zip(shown, golds, said, strict=True)),
            "",
        ]
    )


def mixture_page(names: Sequence[str], lines: Sequence[str], of_each: str) -> str:
    """The scores of several tasks, and where the page `of_each` of them lies."""
    pages = [f"- [{name}]({name}/{of_each})" for name in names]
    scores = [f"- {line}" for line in lines]
    return "\n".join([f"# {len(names)} tasks of one model\n", *scores, "\n## Each\n", *pages, ""])


def length_section(examples: Sequence[str], score: Score) -> str:
    """The score by length of the text; empty where it is no mean over examples."""
    if not score.is_mean or len(score.statistics) != len(examples):
        return ""
    rows = per_length([len(text) for text in examples], 100 * score.statistics[:, 0])
    head = ("characters", score.name, "examples")
    return "\n".join([f"\n## {score.name} by length\n", *_table(head, map(_of_length, rows)), ""])


def label_section(
    task: Task[Any], golds: Sequence[str], answers: Sequence[Answer], picture: str
) -> str:
    """Of labels: each one's scores, the confusion picture, and what probabilities are worth."""
    rows = per_class(golds, [answer.value for answer in answers], task.labels)
    head = ("label", "precision", "recall", "F1", "examples")
    cells = ((r.label, *(f"{x:.1f}" for x in r[1:4]), f"{r.num_examples:,}") for r in rows)
    parts = ["\n## By label\n", *_table(head, cells), f"\n![Which for which]({picture})"]
    if all(answer.probabilities for answer in answers):
        chances = np.array([answer.probabilities for answer in answers])
        error = expected_calibration_error(
            reliability(chances, [task.labels.index(gold) for gold in golds])
        )
        parts += [f"\nExpected calibration error: {error:.1f} %"]
    return "\n".join([*parts, ""])


def label_set_section(
    task: Task[Any], golds: Sequence[Sequence[str]], answers: Sequence[Answer]
) -> str:
    """Of labels of which an example may have several: each one's scores and threshold."""
    rows = per_label(golds, [answer.value for answer in answers], task.labels)
    thresholds = getattr(task, "thresholds", [0.0] * len(rows))
    head = ("label", "precision", "recall", "F1", "examples", "given from")
    cells = (
        (r.label, *(f"{x:.1f}" for x in r[1:4]), f"{r.num_examples:,}", f"{threshold:.2f}")
        for r, threshold in zip(rows, thresholds, strict=True)
    )
    return "\n".join(["\n## By label\n", *_table(head, cells), ""])


def mistakes_section(worst: Sequence[WrongExample]) -> str:
    """The surest mistakes."""
    if not worst:
        return ""
    head = ("text", "right", "said", "sure")
    cells = ((w.text, w.reference, w.prediction, f"{w.confidence:.2f}") for w in worst)
    return "\n".join(["\n## The surest mistakes\n", *_table(head, cells), ""])


def _of_length(row: LengthRow) -> tuple[str, str, str]:
    return f"{row.shortest} to {row.longest}", f"{row.value:.1f}", f"{row.num_examples:,}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [_row(head), "|" + "---|" * len(head)]
    return [*lines, *(_row(row) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """On one line, not too long, and no mark of its own."""
    short = text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"
    return " ".join(short.replace("|", "\\|").replace("<", "&lt;").split())


def _text(value: Any) -> str:
    return " / ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
