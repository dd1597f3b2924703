#!/usr/bin/env python3
"""Score a tuned model on examples of its task.

python jobs/evaluate.py model=runs/RUN data=FILE
"""

import argparse
import sys

from _job import run_job
from finetune import print_scores
from pydantic import Field

from glm_dist.config import Settings, output_path
from glm_dist.errors import ConfigError
from glm_dist.tasks.settings import Columns, Files, TaskSettings


class EvaluateSettings(Settings):
    """Which model answers which examples."""

    model: str
    """A finished run or model folder that carries its task; below GLM_DIST_HOME if relative."""
    base: str | None = None
    """Where the model beside an adapter lies, if it was moved."""
    data: Files
    """File, folder or glob of the examples; aligned files as {source: a.en, target: a.de}."""
    columns: dict[str, Columns] | None = None
    """Field of the task: name or number (from 0) of its column; by default as in training."""
    max_examples: int | None = Field(None, ge=1)
    """As many examples at most, drawn by the seed."""
    seed: int = 0
    """Seed of that draw."""
    output: str | None = None
    """Folder of predictions and scores; by default `evaluation` in the run's folder."""


def main(settings: EvaluateSettings, arguments: argparse.Namespace) -> int:
    """Answer, score, write both down."""
    from glm_dist.engine.export import model_folder
    from glm_dist.evaluate.answers import Answerer
    from glm_dist.evaluate.task_report import PAGE, write_answers
    from glm_dist.inference import load_model
    from glm_dist.metrics.provenance import provenance
    from glm_dist.tasks import load_task
    from glm_dist.tasks.dataset import check_examples
    from glm_dist.tasks.examples import read_examples

    folder = output_path(settings.model)
    base = None if settings.base is None else output_path(settings.base)
    model, tokenizer = load_model(folder, base)
    task = load_task(model_folder(folder), tokenizer, pools_first=model.settings.pools_first)
    if task is None:
        raise ConfigError(
            f"model: {folder} carries no task; give a model that jobs/finetune.py has tuned"
        )
    examples = read_examples(data_of(task.settings, settings), "test", settings.seed)
    examples = task.relate(task.settings, examples)
    check_examples(task, {"test": examples})
    answers = Answerer(model, tokenizer, task).answer(examples)
    output = folder / "evaluation" if settings.output is None else output_path(settings.output)
    origin = {**provenance(), "model": str(folder), "data": settings.data}
    print_scores("score", len(examples), write_answers(output, task, examples, answers, origin))
    print(f"predictions  {output}")
    print(f"report       {output / PAGE}")
    print(f"next         python jobs/serve.py model={settings.model}")
    return 0


def data_of(task: TaskSettings, settings: EvaluateSettings) -> TaskSettings:
    """The task's settings with the examples to be scored as its test split."""
    columns = task.columns if settings.columns is None else settings.columns
    update = {"test": settings.data, "columns": columns, "max_examples": settings.max_examples}
    return type(task)(**{**task.model_dump(), **update})


if __name__ == "__main__":
    sys.exit(run_job(main, EvaluateSettings, description=__doc__ or ""))
