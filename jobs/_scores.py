"""Scores on the terminal: of a tuned model, and of baselines that are fitted beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glm_dist.evaluate.baselines import BaselineSettings
    from glm_dist.evaluate.task_report import Scored
    from glm_dist.tasks import Task

FOLDER = "baselines"


def print_scores(split: str, num_examples: int, scores: "Sequence[Scored]") -> None:
    """Each score with its interval."""
    for one in scores:
        print(f"{split:<12} {one} on {num_examples:,} examples")


def score_baselines(
    task: "Task[Any]",
    splits: dict[str, Any],
    settings: "BaselineSettings",
    run_folder: Path,
    origin: dict[str, Any],
) -> None:
    """Fit each arm, choose on dev, answer the test split once, score, write everything down.

    Raises:
        ConfigError: for an arm that the task does not have.
    """
    from glm_dist.evaluate.baselines import answer_by, arms_of
    from glm_dist.evaluate.task_report import write_answers

    scored = "test" if splits["test"] else "validation"
    for name, arm in arms_of(task, settings).items():
        print(f"\n{name}", flush=True)
        chosen, answers = answer_by(arm, task, splits, settings, _show)
        folder = run_folder / FOLDER / name
        kept = {**origin, "arm": name, "chosen": chosen}
        scores = write_answers(folder, task, splits[scored], answers, kept)
        print(f"chosen       {chosen}")
        print_scores(scored, len(splits[scored]), scores)
        print(f"predictions  {folder}", flush=True)


def _show(line: str) -> None:
    """One candidate of an arm."""
    print(f"             {line}", flush=True)
