"""The table of tasks: what each arm scores, how sure that is, and what pretraining brought.

It stands apart from how the arms come about: of answers it makes figures, and of the figures of all
tasks so far a page and a picture.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glm_dist.evaluate.pictures import draw_arms
from glm_dist.evaluate.score import Score, gain, interval
from glm_dist.evaluate.task_report import apart, score_answers
from glm_dist.metrics.publish import publish
from glm_dist.tasks import Answer, Task
from glm_dist.tasks.examples import Example
from glm_dist.tasks.mixture import Mixture, examples_of

PAGE, PICTURE = "tasks", "arms.svg"
BITS = "bits per byte"
"""The one score that is no percentage, and better where it is lower."""
OURS, SCRATCH = "glm", "scratch"
TOLD = (
    "Percent, but for bits per byte, of which fewer are better; mean over seeds, in brackets the "
    "95 % interval of a bootstrap over examples and seeds. The gain is paired on the same "
    "examples, and counts where its interval excludes 0. What is trained picks learning rate and "
    "epochs on dev; the test part is answered once a seed. A dash: no such arm of this task. Made "
    "again by `make results TASK=…`."
)
ARM_NAMES = {
    OURS: "GLM",
    SCRATCH: "same, from random weights",
    "last_turn": "GLM that reads one turn",
    "base_causal": "causal model",
    "ngram": "n-grams",
    "text": "real text",
    "lstm": "LSTM",
    "tfidf": "TF-IDF",
    "majority": "majority",
    "lead": "first sentences",
    "overlap": "nearest clause",
    "copy": "source copied",
}
"""Arms as readers know them, in the order of the columns."""

NOT_RUN, NO_ARM = "not run", "–"
Entry = dict[str, Any]
"""The figures of one task."""


def entry_of(
    task: Task[Any],
    examples: Sequence[Example],
    answers: Mapping[str, Sequence[Sequence[Answer]]],
    not_run: Sequence[str] = (),
) -> Entry:
    """The figures of a task, in percent.

    Args:
        task: whose answers they are.
        examples: of the test split.
        answers: by arm and seed, in the order of the examples.
        not_run: arms that the task has and that did not answer yet; their score is None.
    """
    scored = {
        name: [score_answers(task, examples, one) for one in by_seed]
        for name, by_seed in answers.items()
    }
    return entry_of_scores(scored, len(examples), not_run)


def entries_of(
    name: str,
    task: Task[Any],
    examples: Sequence[Example],
    answers: Mapping[str, Sequence[Sequence[Answer]]],
    not_run: Sequence[str] = (),
) -> dict[str, Entry]:
    """What `entry_of` gives under the task's name; of a mixture for each task with examples."""
    if not isinstance(task, Mixture):
        return {name: entry_of(task, examples, answers, not_run)}
    by_part: dict[str, dict[str, list[list[Answer]]]] = {}
    for arm, by_seed in answers.items():
        for one in by_seed:
            for part, (_, _, theirs) in apart(task, examples, one).items():
                by_part.setdefault(part, {}).setdefault(arm, []).append(theirs)
    return {
        f"{name}_{part}": entry_of(task.parts[part], examples_of(part, examples), theirs, not_run)
        for part, theirs in by_part.items()
    }


def entry_of_scores(
    scored: Mapping[str, Sequence[Sequence[Score]]], count: int, not_run: Sequence[str] = ()
) -> Entry:
    """The same of scores by arm and seed, of `count` examples; the first one is what counts."""
    first = {name: [scores[0] for scores in by_seed] for name, by_seed in scored.items()}
    arms = {name: _arm(by_seed) for name, by_seed in scored.items()}
    ours = arms.get(OURS, {"score": None, "interval": None})
    others = {name: theirs for name, theirs in first.items() if name != OURS}
    gains = {name: gain(first[OURS], one) for name, one in others.items() if OURS in first}
    return {
        "metric": next(iter(first.values()))[0].name,
        "examples": count,
        "score": ours["score"],
        "interval": ours["interval"],
        **{name: arms[name]["score"] for name in others},
        **dict.fromkeys((name for name in not_run if name != OURS), None),
        "gains": {name: _as_plain(one) for name, one in gains.items()},
        "arms": arms,
        "not_run": list(not_run),
    }


def publish_entry(docs: Path, name: str, entry: Entry, origin: Mapping[str, Any]) -> Path:
    """Put a task into the table below `docs`, beside those that are there; the page."""
    path = docs / f"{PAGE}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known.pop("origin", None)
    entries = dict(sorted({**known, name: {**entry, "origin": dict(origin)}}.items()))
    figures = {**entries, "origin": dict(origin)}
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / PICTURE
        shares = {name: one for name, one in entries.items() if one["metric"] != BITS}
        draw_arms(picture, shares, ARM_NAMES)
        return publish(docs, PAGE, page_of(entries), figures, {PICTURE: picture})


def page_of(entries: Mapping[str, Entry]) -> str:
    """The page of all tasks, in Markdown."""
    known = {name for one in entries.values() for name in [*one["arms"], *_not_run(one)]}
    names = [name for name in ARM_NAMES if name in known]
    gained = "gain over random weights"
    head = ["task", "score", "test examples", *(ARM_NAMES[name] for name in names), gained]
    rows = [
        [
            task,
            one["metric"],
            f"{one['examples']:,}",
            *(_with_interval(one["arms"].get(name), _form(one), _why(one, name)) for name in names),
            _with_interval(one["gains"].get(SCRATCH), "+.1f", _why(one, SCRATCH, OURS)),
        ]
        for task, one in entries.items()
    ]
    details = [line for task, one in entries.items() for line in _details(task, one)]
    lines = ["# Tasks", "", TOLD, "", *_table(head, rows), "", f"![all arms]({PICTURE})", ""]
    return "\n".join([*lines, *details])


def _arm(by_seed: Sequence[Sequence[Score]]) -> Entry:
    """One arm's figures over its seeds; the first score of each is the one that counts."""
    first = [scores[0] for scores in by_seed]
    found = _as_plain(interval(first))
    means = {
        several[0].name: float(np.mean([score.value for score in several]))
        for several in zip(*by_seed, strict=True)
    }
    return {**found, "seeds": [score.value for score in first], "scores": means}


def _as_plain(found: Any) -> Entry:
    return {"score": found.value, "interval": [found.low, found.high]}


def _details(task: str, one: Entry) -> list[str]:
    """What dev decided, the other scores, and samples where there are some."""
    lines = [f"## {task}", "", *(f"{name}: {value}  " for name, value in one["told"].items()), ""]
    form, head = _form(one), ["arm", "other scores", "by seed", "chosen on dev"]
    rows = [
        [
            ARM_NAMES.get(name, name),
            ", ".join(
                f"{other} {value:{form}}"
                for other, value in arm["scores"].items()
                if other != one["metric"]
            ),
            ", ".join(f"{value:{form}}" for value in arm["seeds"]),
            "; ".join(arm.get("chosen", [])),
        ]
        for name, arm in one["arms"].items()
    ]
    lines += [*_table(head, rows), ""]
    for language, samples in one.get("samples", {}).items():
        lines += [f"The first beginnings of held-out texts gone on with, {language}:", ""]
        lines += [f"- **{_line(given['start'])}** {_line(given['text'])}" for given in samples]
        lines.append("")
    return lines


def _form(one: Entry) -> str:
    return ".2f" if one["metric"] == BITS else ".1f"


def _not_run(one: Entry) -> list[str]:
    return list(one.get("not_run", ()))


def _why(one: Entry, *arms: str) -> str:
    """What stands where a figure that needs these arms is missing."""
    return NOT_RUN if set(arms).intersection(_not_run(one)) else NO_ARM


def _with_interval(found: Entry | None, form: str, missing: str) -> str:
    if found is None or found["score"] is None:
        return missing
    low, high = found["interval"]
    return f"{found['score']:{form}} ({low:{form}} to {high:{form}})"


def _line(text: str) -> str:
    """A text on one line, without marks of its own."""
    return " ".join(text.replace("*", "\\*").replace("<", "&lt;").split())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_row(head), "|" + "---|" * len(head), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
