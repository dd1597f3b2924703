#!/usr/bin/env python3
"""Tasks of lm-evaluation-harness on a model of ours, asked in this process.

python jobs/harness.py model=runs/my_run tasks='[hellaswag]'
python jobs/harness.py model=runs/my_run tasks='[mine]' include=folder_with_mine.yaml/
"""

import argparse
import json
import sys

from _job import model_path, run_job
from pydantic import Field

from glm_dist.config import Settings, output_path
from glm_dist.errors import ConfigError, import_optional


class HarnessSettings(Settings):
    """Which model answers which of the harness's tasks."""

    model: str
    """A finished run or model folder; below GLM_DIST_HOME if relative."""
    tasks: list[str] = Field(min_length=1)
    """Names of tasks; their data is read as each says, most of it from the network."""
    include: str | None = None
    """Folder with YAML files of your own tasks."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples before each question; null as each task says."""
    limit: int | None = Field(None, ge=1)
    """As many questions of each task at most."""
    output: str | None = None
    """Folder of the results; by default `harness` in the model's folder."""


def main(settings: HarnessSettings, _: argparse.Namespace) -> int:
    """Ask, print a table, and write the figures down."""
    evaluator = import_optional("lm_eval.evaluator", "harness")
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from glm_dist.evaluate.harness import HarnessModel
    from glm_dist.inference import load_model
    from glm_dist.metrics.provenance import provenance

    folder = model_path(settings.model)
    manager = TaskManager(include_path=settings.include)
    unknown = [name for name in settings.tasks if name not in manager.all_tasks]
    if unknown:
        raise ConfigError(
            f"tasks: {', '.join(unknown)} is none of the harness's, nor in include; "
            "`lm-eval ls tasks` lists them"
        )
    model = HarnessModel(*load_model(folder))
    found = evaluator.simple_evaluate(
        model=model,
        tasks=settings.tasks,
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        task_manager=manager,
        log_samples=False,
    )
    print(make_table(found))
    output = folder / "harness" if settings.output is None else output_path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    document = {"results": found["results"], "versions": found["versions"], **provenance()}
    path = output / "results.json"
    path.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
    print(f"results      {path}")
    print(f"next         python jobs/serve.py model={settings.model}")
    return 0


if __name__ == "__main__":
    sys.exit(run_job(main, HarnessSettings, description=__doc__ or ""))
