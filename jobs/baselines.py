#!/usr/bin/env python3
"""Score what the field started from on a task, on the splits that a GLM is tuned and scored on.

python jobs/baselines.py --config jobs/configs/tasks/FILE     the config that jobs/finetune.py takes
python jobs/baselines.py --data FOLDER                        a folder with train.csv and test.csv
"""

import argparse
import sys

from _job import run_job
from _scores import score_baselines
from finetune import with_folder

from glm_dist.evaluate.baselines import BaselineSettings
from glm_dist.train.finetune_settings import FinetuneSettings


class Settings(FinetuneSettings):
    """A task as it is fine-tuned, and what stands beside it."""

    baselines: BaselineSettings = BaselineSettings()


def main(settings: Settings, arguments: argparse.Namespace) -> int:
    """Read, check, and score what stands beside the task."""
    from glm_dist.evaluate.baselines import arms_of
    from glm_dist.metrics.provenance import provenance
    from glm_dist.tasks.dataset import check_examples
    from glm_dist.train.finetune import open_task

    origin = provenance()
    task, splits = open_task(settings)
    arms_of(task, settings.baselines)  # an arm that is not there is said first
    check_examples(task, splits)
    for name, examples in splits.items():
        print(f"{name:<12} {len(examples):,} examples")
    score_baselines(task, splits, settings.baselines, settings.run_path, origin)
    return 0


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
