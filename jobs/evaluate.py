#!/usr/bin/env python3
"""Score a model on examples of the task that it was tuned for, or of any that a config describes.

python jobs/evaluate.py model=runs/RUN data=FILE
python jobs/evaluate.py model=runs/BASE task_config=FILE in_context=4 num_seeds=5
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _asked import Asked, EvaluateSettings, asked_of
from _job import model_path, run_job
from _scores import print_scores

from glm_dist.config import output_path
from glm_dist.errors import ConfigError

if TYPE_CHECKING:
    from glm_dist.evaluate.pool_settings import PoolSettings
    from glm_dist.model import GLM
    from glm_dist.tasks import Answer


def main(settings: EvaluateSettings, arguments: argparse.Namespace) -> int:
    """Answer, score, write both down."""
    from glm_dist.evaluate.answers import Answerer
    from glm_dist.evaluate.task_report import PAGE, write_answers
    from glm_dist.inference import load_model
    from glm_dist.metrics.provenance import provenance
    from glm_dist.tasks.dataset import check_examples

    folder = model_path(settings.model)
    base = None if settings.base is None else output_path(settings.base)
    model, tokenizer = load_model(folder, base)
    asked = asked_of(settings, folder, model, tokenizer)
    check_examples(asked.task, {"test": asked.test})
    output = folder / "evaluation" if settings.output is None else output_path(settings.output)
    origin = {**provenance(), "model": str(folder), "data": settings.data or settings.task_config}
    if getattr(asked.task.settings, "in_context", 0):
        if settings.pool is not None:
            raise ConfigError("pool: answers no question in context; leave it out")
        score_in_context(settings, model, asked, output, origin)
    else:
        if settings.pool is None:
            answers = Answerer(model, tokenizer, asked.task).answer(asked.test)
        else:
            del model  # the engines open their own
            answers = answer_by_pool(settings, settings.pool, folder, asked, output)
        scores = write_answers(output, asked.task, asked.test, answers, origin)
        print_scores("score", len(asked.test), scores)
        print(f"report       {output / PAGE}")
    print(f"predictions  {output}")
    if settings.task_config is None:
        print(f"next         python jobs/serve.py model={settings.model}")
    return 0


def answer_by_pool(
    settings: EvaluateSettings, pool: "PoolSettings", folder: Path, asked: Asked, output: Path
) -> "list[Answer]":
    """The answers of engines side by side, kept part by part below the output."""
    from _pool import answer_all

    from glm_dist.engine.adapters import hash_model
    from glm_dist.engine.folders import model_folder
    from glm_dist.evaluate.part_work import TaskAnswers, answer_of
    from glm_dist.evaluate.pipeline import Parts

    told = {
        "model_sha256": hash_model(model_folder(folder)),
        "task": asked.task.settings.model_dump(mode="json"),
        "max_tokens": asked.task.binding.max_tokens,
    }
    base = None if settings.base is None else str(output_path(settings.base))
    work = TaskAnswers(str(folder), base, "cuda" if pool.num_gpus else "cpu", asked.task)
    parts = Parts(output / "parts", asked.test, told, pool)
    return list(map(answer_of, answer_all(parts, work, pool, len(asked.test))))


def score_in_context(
    settings: EvaluateSettings,
    model: "GLM",
    asked: Asked,
    output: Path,
    origin: Mapping[str, Any],
) -> None:
    """Answer behind examples that each seed draws anew; scores by seed, and over them all."""
    from glm_dist.evaluate.answers import Answerer
    from glm_dist.evaluate.over_seeds import over_seeds
    from glm_dist.evaluate.task_report import SCORES, score_answers, write_answers
    from glm_dist.tasks.dataset import check_examples
    from glm_dist.tasks.in_context import InContext, draw_shown

    task, by_seed, seeds = asked.task, [], []
    check_examples(task, {"train": asked.train})
    for seed in range(settings.seed, settings.seed + settings.num_seeds):
        shown = draw_shown(task.settings, asked.train, seed)
        of_seed = InContext(task.settings, task.binding, shown)
        answers = Answerer(model, task.tokenizer, of_seed).answer(asked.test)
        told = {"in_context": task.settings.in_context, "seed": seed, **of_seed.counts}
        written = write_answers(
            output / f"seed-{seed}", of_seed, asked.test, answers, {**origin, **told}
        )
        print_scores(f"seed {seed}", len(asked.test), written)
        print(f"{'':<12} {of_seed.told_counts}", flush=True)
        by_seed.append(score_answers(of_seed, asked.test, answers))
        seeds.append(told)
    found = over_seeds(by_seed)
    for one in found:
        print(f"over seeds   {one}")
    kept = {**origin, "seeds": seeds, "scores": list(map(asdict, found))}
    (output / SCORES).write_text(json.dumps(kept, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_job(main, EvaluateSettings, description=__doc__ or ""))
