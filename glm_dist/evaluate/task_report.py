"""What a task's answers are worth: scores with intervals, predictions, confusions, worst errors.

It stands apart from how answers come about, so that every model, ours or not, is reported alike.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from glm_dist.evaluate.label_sets import set_scores
from glm_dist.evaluate.mistakes import confusion, worst_errors
from glm_dist.evaluate.pictures import draw_confusion
from glm_dist.evaluate.score import Score, interval
from glm_dist.evaluate.scores import (
    accuracy,
    answer_f1,
    bleu,
    chrf,
    entity_f1,
    exact_match,
    macro_f1,
    recall_at,
    rouge,
    span_f1,
)
from glm_dist.evaluate.task_page import (
    label_section,
    label_set_section,
    length_section,
    mistakes_section,
    mixture_page,
    page,
)
from glm_dist.tasks import Answer, Task
from glm_dist.tasks.examples import Example
from glm_dist.tasks.labelling import spells_spans
from glm_dist.tasks.mixture import NAME, Mixture

PREDICTIONS, SCORES, PAGE = "predictions.jsonl", "scores.json", "report.md"
CONFUSION = "confusion.svg"
NUM_WORST = 10


@dataclass(frozen=True)
class Scored:
    """One score as it is printed and kept."""

    name: str
    value: float
    low: float
    high: float
    signature: str = ""

    def __str__(self) -> str:
        """The score with its 95 % interval."""
        return f"{self.name} {self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


def score_answers(
    task: Task[Any], examples: Sequence[Example], answers: Sequence[Answer]
) -> list[Score]:
    """The scores of the task's kind, the one that counts first; of a mixture those of each."""
    if isinstance(task, Mixture):
        return [
            replace(score, name=f"{name} {score.name}")
            for name, (part, theirs, ours) in apart(task, examples, answers).items()
            for score in score_answers(part, theirs, ours)
        ]
    golds = [task.compared(one, task.gold(one)) for one in examples]
    values = [
        task.compared(one, answer.value) for one, answer in zip(examples, answers, strict=True)
    ]
    language = _language(task, examples)
    scoring = task.scoring
    if scoring == "labels":
        return [accuracy(golds, values), macro_f1(golds, values, task.labels)]
    if scoring == "label_sets":
        return set_scores(golds, values, task.labels)
    if scoring == "tags":
        flat = accuracy([t for tags in golds for t in tags], [t for tags in values for t in tags])
        return [entity_f1(golds, values), flat] if spells_spans(task.labels) else [flat]
    if scoring == "translation":
        return [bleu(golds, values, language), chrf(golds, values)]
    if scoring == "summary":
        return [rouge(golds, values, kind) for kind in ("rougeL", "rouge1", "rouge2")]
    if scoring == "blanks":
        golds = [blank for blanks in golds for blank in blanks]
        values = [blank for blanks in values for blank in blanks]
    if scoring in ("answer", "blanks"):
        return [exact_match(golds, values, language), answer_f1(golds, values, language)]
    if scoring == "ranking":
        ranks = [one.index(gold) + 1 for gold, one in zip(golds, values, strict=True)]
        return [recall_at(k, ranks) for k in (1, 2, 5)]
    if scoring == "edits":
        return [span_f1(golds, values)]
    return [rouge(golds, values, "rougeL"), bleu(golds, values, language)]


def write_answers(
    folder: Path,
    task: Task[Any],
    examples: Sequence[Example],
    answers: Sequence[Answer],
    origin: dict[str, Any],
) -> list[Scored]:
    """Write predictions, scores and, of labels, the confusion picture; the scores.

    Args:
        folder: made if missing.
        task: whose answers they are.
        examples: with their right answers.
        answers: in the same order.
        origin: what the scores are of, kept beside them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / PREDICTIONS, task, examples, answers)
    if isinstance(task, Mixture):
        scores = [
            replace(score, name=f"{name} {score.name}")
            for name, (part, theirs, ours) in apart(task, examples, answers).items()
            for score in write_answers(folder / name, part, theirs, ours, origin)
        ]
        kept: dict[str, Any] = _kept(scores, len(examples), origin)
        _write(folder / SCORES, json.dumps(kept, indent=1, ensure_ascii=False))
        _write(folder / PAGE, mixture_page(list(task.parts), list(map(str, scores)), PAGE))
        return scores
    computed = score_answers(task, examples, answers)
    scores = [
        Scored(score.name, **interval([score])._asdict(), signature=score.signature)
        for score in computed
    ]
    kept = _kept(scores, len(examples), origin)
    text = page(task, examples, answers, list(map(str, scores)), origin)
    text += length_section([task.shown(one) for one in examples], computed[0])
    if task.scoring == "labels":
        labelled, section = _write_labels(folder, task, examples, answers, str(scores[0]))
        kept, text = kept | labelled, text + section
    if task.scoring == "label_sets":
        text += label_set_section(task, [task.gold(one) for one in examples], answers)
    _write(folder / SCORES, json.dumps(kept, indent=1, ensure_ascii=False))
    _write(folder / PAGE, text)
    return scores


def apart(
    task: Mixture, examples: Sequence[Example], answers: Sequence[Answer]
) -> dict[str, tuple[Task[Any], list[Example], list[Answer]]]:
    """By name each task of a mixture that has examples, with these and their answers."""
    pairs = list(zip(examples, answers, strict=True))
    found = {}
    for name, part in task.parts.items():
        of_part = [pair for pair in pairs if pair[0].fields[NAME] == name]
        if of_part:
            found[name] = (part, [one for one, _ in of_part], [two for _, two in of_part])
    return found


def _kept(scores: Sequence[Scored], count: int, origin: dict[str, Any]) -> dict[str, Any]:
    return {**origin, "examples": count, "scores": list(map(asdict, scores))}


def _write_labels(
    folder: Path,
    task: Task[Any],
    examples: Sequence[Example],
    answers: Sequence[Answer],
    title: str,
) -> tuple[dict[str, Any], str]:
    """What is known of labels besides their scores, as values and as a part of the page."""
    golds, values = [task.gold(one) for one in examples], [one.value for one in answers]
    table = confusion(golds, values, task.labels)
    draw_confusion(folder / CONFUSION, table, task.labels, f"{task.settings.kind}: {title}")
    sure = [max(one.probabilities, default=0.0) for one in answers]
    worst = worst_errors(list(map(task.shown, examples)), golds, values, sure, NUM_WORST)
    kept = {
        "confusion": table.tolist(),
        "labels": list(task.labels),
        "worst_errors": [one._asdict() for one in worst],
    }
    return kept, label_section(task, golds, answers, CONFUSION) + mistakes_section(worst)


def write_predictions(
    path: Path,
    task: Task[Any],
    examples: Sequence[Example],
    answers: Sequence[Answer],
    *,
    is_labelled: bool = True,
) -> None:
    """One JSON line for each example: what was asked, said and, where it is known, right."""
    lines = []
    for example, answer in zip(examples, answers, strict=True):
        line = {"place": example.place, "input": task.shown(example), "prediction": answer.value}
        if is_labelled:
            line["gold"] = task.gold(example)
        if answer.probabilities and task.labels:
            line["probabilities"] = dict(zip(task.labels, answer.probabilities, strict=True))
        lines.append(json.dumps(line, ensure_ascii=False))
    _write(path, "\n".join([*lines, ""]))


def read_answers(folder: Path) -> list[Answer]:
    """What `write_answers` wrote down, in the order of the examples."""
    # Texts hold characters that splitlines would cut at.
    lines = (folder / PREDICTIONS).read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [
        Answer(one["prediction"], tuple(one.get("probabilities", {}).values()))
        for one in map(json.loads, lines)
    ]


def _language(task: Task[Any], examples: Sequence[Example]) -> str:
    """Of the answers: as the task says, else that of most examples."""
    given = getattr(task.settings, "target_language", None) or task.settings.language
    if given:
        return str(given)
    chinese = sum(example.language == "zh" for example in examples)
    return "zh" if chinese > len(examples) / 2 else "en"


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
