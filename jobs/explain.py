#!/usr/bin/env python3
"""Show which tokens of a text spoke for the label that a tuned model gave it.

python jobs/explain.py model=runs/RUN texts='["a moving film", "dull and cold"]'
python jobs/explain.py model=runs/RUN data=FILE max_examples=200
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from _job import model_path, run_job
from pretrain import format_seconds
from pydantic import Field, model_validator

from glm_dist.config import Settings, output_path
from glm_dist.errors import ConfigError
from glm_dist.tasks.settings import Columns, Files

if TYPE_CHECKING:
    from glm_dist.evaluate.explain import Decision, Explanation
    from glm_dist.model import GLM
    from glm_dist.tasks import Task
    from glm_dist.tasks.examples import Example
    from glm_dist.tokenizer import Tokenizer

SHOWN_TOKENS = 6
SECONDS_BETWEEN_LINES = 10


class ExplainSettings(Settings):
    """Which model explains which texts."""

    model: str
    """A finished run or model folder that carries a classification; below GLM_DIST_HOME if
    relative."""
    texts: list[str] = []
    """Texts to be classified."""
    data: Files | None = None
    """In place of texts a file, folder or glob of the task's examples; of these it is also measured
    whether the log odds fall when the tokens that count most are masked."""
    columns: dict[str, Columns] | None = None
    """Field of the task: name or number (from 0) of its column; by default as in training."""
    max_examples: int = Field(200, ge=1)
    """As many examples of `data` at most, drawn by the seed."""
    seed: int = 0
    """Of the draw, and of the tokens that are masked at random."""
    output: str | None = None
    """Folder of the explanations; by default `explanations` in the run's folder."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.texts) == (self.data is not None):
            raise ValueError("give texts or data, and one of them alone")
        return self


def main(settings: ExplainSettings, arguments: argparse.Namespace) -> int:
    """Classify, explain, print what counts most, write JSON and pictures."""
    from glm_dist.engine.folders import model_folder
    from glm_dist.evaluate.answers import Answerer
    from glm_dist.evaluate.explain import explain
    from glm_dist.evaluate.explain_picture import draw_explanation
    from glm_dist.inference import load_model
    from glm_dist.tasks import load_task
    from glm_dist.tasks.dataset import check_examples

    folder = model_path(settings.model)
    model, tokenizer = load_model(folder)
    task = load_task(model_folder(folder), tokenizer, pools_first=model.settings.pools_first)
    if task is None:
        raise ConfigError(
            f"model: {folder} carries no task; give a model that jobs/finetune.py has tuned"
        )
    examples = examples_of(settings, task)
    check_examples(task, {"texts": examples}, is_labelled=False)
    output = folder / "explanations" if settings.output is None else output_path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    answers = Answerer(model, tokenizer, task).answer(examples)
    deletions = Deletions(model, tokenizer, len(examples), settings.seed)
    for number, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        decision, label = decided(task, tokenizer, example, answer)
        found = explain(model, tokenizer, decision, label)
        found.save(output / f"{number:03d}.json")
        draw_explanation(output / f"{number:03d}.svg", found)
        if settings.data is None:
            show(example.text("text"), found)
        else:
            deletions.add(decision, found)
    if settings.data is not None:
        about = {"model": settings.model, "data": settings.data}
        deletions.write(output / "faithfulness.json", about)
    print(f"explanations {output}")
    return 0


def examples_of(settings: ExplainSettings, task: "Task[Any]") -> "list[Example]":
    """The texts that are given, or a draw of those in the files."""
    from glm_dist.tasks.examples import Example, read_examples

    if settings.data is None:
        pairs = enumerate(settings.texts)
        return [Example({"text": text}, f"texts[{number}]") for number, text in pairs]
    columns = task.settings.columns if settings.columns is None else settings.columns
    update = {"test": settings.data, "columns": columns, "max_examples": settings.max_examples}
    examples = read_examples(task.settings.model_copy(update=update), "test", settings.seed)
    return task.relate(task.settings, examples)


def decided(
    task: "Task[Any]", tokenizer: "Tokenizer", example: "Example", answer: Any
) -> "tuple[Decision, str]":
    """Where the answer was chosen, and what it is called."""
    from glm_dist.evaluate.decisions import decision_of

    decision, label = decision_of(task, example, answer), str(answer.value)
    if not task.head.is_classifier:  # longer words are chosen by their other tokens too
        label += f" by {tokenizer.piece(decision.answers[decision.chosen])!r}"
    return decision, label


class Deletions:
    """Takes away what counts most, in one text after the other."""

    def __init__(self, model: "GLM", tokenizer: "Tokenizer", count: int, seed: int) -> None:
        self._model, self._tokenizer, self._count, self._seed = model, tokenizer, count, seed
        self._tested: list[Any] = []
        self._begun = self._told = time.monotonic()

    def add(self, decision: "Decision", found: "Explanation") -> None:
        """Test one, and say now and then how long the others will take."""
        from glm_dist.evaluate.explain import deletion_drops
        from glm_dist.evaluate.faithful import Drops

        seed = self._seed + len(self._tested)
        drops = deletion_drops(self._model, self._tokenizer, decision, found.attributions, seed)
        self._tested.append(Drops(found.gap, *drops))
        now, done = time.monotonic(), len(self._tested)
        if now - self._told > SECONDS_BETWEEN_LINES:
            left = (now - self._begun) / done * (self._count - done)
            print(f"explained    {done} of {self._count}, {format_seconds(left)} left", flush=True)
            self._told = now

    def write(self, path: Path, about: dict[str, Any]) -> None:
        """What came of all of them, printed and kept."""
        from glm_dist.evaluate.faithful import faithfulness
        from glm_dist.metrics.provenance import provenance

        found = faithfulness(self._tested)
        print(f"faithful     {found}")
        kept = {**asdict(found), **about, **provenance()}
        path.write_text(json.dumps(kept, indent=1, ensure_ascii=False), encoding="utf-8")


def show(text: str, found: "Explanation") -> None:
    """The label, and the tokens that speak most for it and against it."""
    print(f"\n{text}\n  → {found.label}, log odds {found.log_odds:.2f}")
    pairs = zip(found.tokens, found.attributions, strict=True)
    strongest = sorted(pairs, key=lambda pair: -abs(pair[1]))[:SHOWN_TOKENS]
    print("  " + "  ".join(f"{token.strip()} {value:+.2f}" for token, value in strongest))


if __name__ == "__main__":
    sys.exit(run_job(main, ExplainSettings, description=__doc__ or ""))
