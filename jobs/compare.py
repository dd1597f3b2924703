#!/usr/bin/env python3
"""Compare ways to do the same tasks, at several sizes of training data, with several seeds each.

python jobs/compare.py --config jobs/configs/compare/cloze_or_head.yaml --docs docs/results
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _driver import RESUME_ME
from _job import run_job
from finetune import StoppedError
from pydantic import Field, model_validator
from results import show, train

from glm_dist.config import Settings, load_config, output_path
from glm_dist.train.arms import ArmSettings


class CompareSettings(Settings):
    """Ways and sizes are settings of a task's config, each written as on the command line."""

    name: str = Field(min_length=1)
    """Of the page."""
    title: str
    """What is asked."""
    tasks: list[str] = Field(min_length=1)
    """Configs of tasks as jobs/results.py reads them; beside this config if relative."""
    settings: list[str] = []
    """Of all."""
    sizes: dict[str, list[str]] = {"all": []}
    """What is trained on, as readers know it: its settings."""
    ways: dict[str, list[str]] = Field(min_length=2)
    """What is compared: its settings; gains are those of the first."""

    @model_validator(mode="after")
    def _check(self) -> "CompareSettings":
        every = [*self.settings, *sum(self.sizes.values(), []), *sum(self.ways.values(), [])]
        wrong = [given for given in every if "=" not in given]
        if wrong:
            raise ValueError(f"{', '.join(map(repr, wrong))}: write key=value")
        return self


@dataclass(frozen=True)
class Run:
    """One way on one task at one size."""

    task: str
    size: str
    way: str
    settings: ArmSettings


def main(settings: CompareSettings, arguments: argparse.Namespace) -> int:
    """Run what has not run yet, and publish all; RESUME_ME when asked to stop early."""
    from glm_dist.evaluate.comparison import compared, publish_comparison
    from glm_dist.evaluate.task_report import score_answers
    from glm_dist.metrics.provenance import provenance
    from glm_dist.train.arms import OURS, Arms

    folder = Path(arguments.config).parent if arguments.config else Path()
    origin, begun, runs = provenance(), time.monotonic(), list(runs_of(settings, folder))
    arms = [Arms(run.settings, train, show, origin) for run in runs]
    for each in arms:
        each.check([OURS])
    scores: dict[tuple[str, str], dict[str, Any]] = {}
    counts = {}
    for number, (run, each) in enumerate(zip(runs, arms, strict=True), start=1):
        show(f"run          {number} of {len(runs)}: {run.task}, {run.size}, {run.way}")
        try:
            answers = each.run(OURS).answers
        except StoppedError:
            print("next         the same command again goes on with the run that it was at")
            return RESUME_ME
        found = [score_answers(each.task, each.examples, one)[0] for one in answers]
        scores.setdefault((run.task, run.size), {})[run.way] = found
        counts[run.task] = len(each.examples)
    rows = [compared(task, size, counts[task], ways) for (task, size), ways in scores.items()]
    for row in rows:
        for way, one in row["ways"].items():
            low, high = one["interval"]
            told = f"{row['task']}, {row['size']}, {way}"
            print(f"{told}: {row['metric']} {one['score']:.1f} ({low:.1f} to {high:.1f})")
    docs = Path(arguments.docs) if arguments.docs else output_path("results")
    page = publish_comparison(docs, settings.name, settings.title, rows, origin)
    print(f"page         {page}, after {(time.monotonic() - begun) / 60:.0f} minutes")
    return 0


def runs_of(settings: CompareSettings, folder: Path) -> Iterator[Run]:
    """Every way of every size and task.

    Raises:
        ConfigError: with what is wrong in a task's settings.
    """
    for path in settings.tasks:
        for size, changes in settings.sizes.items():
            for way, more in settings.ways.items():
                given = [*settings.settings, *changes, *more]
                found = load_config(ArmSettings, folder / path, given)
                yield Run(found.name, size, way, found)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that are no settings."""
    parser.add_argument(
        "--docs", metavar="FOLDER", help="where the page lies; by default below GLM_DIST_HOME"
    )


if __name__ == "__main__":
    sys.exit(run_job(main, CompareSettings, description=__doc__ or "", add_flags=add_flags))
