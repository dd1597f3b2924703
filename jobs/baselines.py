#!/usr/bin/env python3
"""Score what the field started from on a task, on the splits that a GLM is tuned and scored on.

python jobs/baselines.py --config jobs/configs/tasks/FILE     the config that jobs/finetune.py takes
python jobs/baselines.py --data FOLDER                        a folder with train.csv and test.csv
"""

import argparse
import sys

from _job import run_job
from finetune import print_scores, with_folder

from glm_dist.evaluate.baselines import BaselineSettings
from glm_dist.train.finetune_settings import FinetuneSettings

FOLDER = "baselines"


class Settings(FinetuneSettings):
    """A task as it is fine-tuned, and what stands beside it."""

    baselines: BaselineSettings = BaselineSettings()


def main(settings: Settings, arguments: argparse.Namespace) -> int:
    """Fit, choose on dev, answer the test split once, score, write everything down."""
    from glm_dist.evaluate.baselines import answer_by, arms_of
    from glm_dist.evaluate.task_report import write_answers
    from glm_dist.metrics.provenance import provenance
    from glm_dist.tasks import TASKS, build_task
    from glm_dist.tasks.dataset import check_examples
    from glm_dist.train.finetune import read_splits

    origin = provenance()
    splits = read_splits(settings)
    task = build_task(TASKS[settings.task.kind].complete(settings.task, splits["train"]))
    arms = arms_of(task, settings.baselines)
    check_examples(task, splits)
    for name, examples in splits.items():
        print(f"{name:<12} {len(examples):,} examples")
    scored = "test" if splits["test"] else "validation"
    for name, arm in arms.items():
        print(f"\n{name}", flush=True)
        chosen, answers = answer_by(arm, task, splits, settings.baselines, show)
        folder = settings.run_path / FOLDER / name
        kept = {**origin, "arm": name, "chosen": chosen}
        scores = write_answers(folder, task, splits[scored], answers, kept)
        print(f"chosen       {chosen}")
        print_scores(scored, len(splits[scored]), scores)
        print(f"predictions  {folder}", flush=True)
    return 0


def show(line: str) -> None:
    """One candidate of an arm."""
    print(f"             {line}", flush=True)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that are no settings."""
    parser.add_argument(
        "--data", metavar="FOLDER", help="a folder with train.csv, test.csv and perhaps dev.csv"
    )


if __name__ == "__main__":
    sys.exit(
        run_job(
            main,
            Settings,
            description=__doc__ or "",
            add_flags=add_flags,
            argv=with_folder(sys.argv[1:]),
        )
    )
