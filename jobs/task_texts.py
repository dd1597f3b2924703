#!/usr/bin/env python3
"""The texts of tasks, part by part: to pretrain on what is learnt from, to keep out what is scored.

python jobs/task_texts.py jobs/configs/tasks/FILE [more files]
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _job import quiet

from glm_dist.config import load_config, output_path
from glm_dist.errors import ConfigError, GlmDistError

if TYPE_CHECKING:
    from glm_dist.tasks import Task
    from glm_dist.tasks.examples import Example


def main(argv: Sequence[str] | None = None) -> int:
    """Write each part of each task; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="as jobs/finetune.py reads it")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        default="task_texts",
        help="gets a folder for each task; below GLM_DIST_HOME if relative",
    )
    arguments = parser.parse_args(argv)
    quiet()
    try:
        for config in arguments.configs:
            write_parts(config, output_path(arguments.output))
    except GlmDistError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("next         name train.jsonl among the sources of jobs/prepare_data.py, test.jsonl in")
    print("             its exclude; text_field: answered reads texts with their answers")
    return 0


def write_parts(config: str, output: Path) -> None:
    """`train.jsonl` and `test.jsonl` of a task, an example a line."""
    from glm_dist.train.finetune import open_task
    from glm_dist.train.finetune_settings import FinetuneSettings

    settings = load_config(FinetuneSettings, config)
    if settings.task.kind == "mixture":
        raise ConfigError(f"{config}: is a mixture; give the config of each of its tasks")
    task, splits = open_task(settings)
    # Which examples are dev depends on a run's seed, where it is cut from train.
    is_cut = settings.task.dev is None
    parts = {
        "train": [*splits["train"], *(splits["validation"] if is_cut else [])],
        "test": [*splits["test"], *([] if is_cut else splits["validation"])],
    }
    folder = output / settings.name
    folder.mkdir(parents=True, exist_ok=True)
    for part, examples in parts.items():
        path = folder / f"{part}.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for record in records(task, examples):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        print(f"{part:<12} {len(examples):,} examples: {path}")


def records(task: "Task[Any]", examples: "Sequence[Example]") -> Iterator[dict[str, list[str]]]:
    """What there is to read in each example, and the same with its answer behind it."""
    for example in examples:
        texts, answer = task.texts(example), task.settings.answer_field
        yield {"text": texts, "answered": [*texts, *([example.text(answer)] if answer else [])]}


if __name__ == "__main__":
    sys.exit(main())
