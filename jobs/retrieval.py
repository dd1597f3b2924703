#!/usr/bin/env python3
"""Does a model's embedding of a sentence lie nearest to that of its translation?

python jobs/retrieval.py model=runs/base task_config=jobs/configs/tasks/en_zh_tatoeba.yaml
"""

import argparse
import sys
from pathlib import Path

from _job import model_path, run_job
from pydantic import Field
from results import print_entry

from glm_dist.config import Settings, load_config, output_path
from glm_dist.errors import ConfigError

KEY = "retrieval"


class RetrievalSettings(Settings):
    """Which model is asked for which pairs."""

    model: str = "runs/base"
    """A finished run or model folder; below GLM_DIST_HOME if relative."""
    task_config: str
    """Config of a translation as jobs/finetune.py reads it; its test part is looked at."""
    num_pairs: int = Field(1000, ge=2)
    """Pairs of sentences at most, drawn by the seed; each is looked for among all of them."""
    max_tokens: int = Field(128, ge=2)
    """Longer sentences are cut."""
    seeds: list[int] = Field([1234, 5678, 3456], min_length=1)
    """Of the random weights that the model is compared with; the first one also draws the pairs."""


def main(settings: RetrievalSettings, arguments: argparse.Namespace) -> int:
    """Embed, look for the nearest, and put the figures into the table of tasks."""
    from glm_dist.engine.adapters import hash_model
    from glm_dist.engine.folders import model_folder
    from glm_dist.evaluate.results import OURS, SCRATCH, entry_of_scores, publish_entry
    from glm_dist.evaluate.retrieval import embed, retrieval_scores
    from glm_dist.inference import load_model
    from glm_dist.metrics.provenance import provenance
    from glm_dist.model import build_model

    origin, folder = provenance(), model_path(settings.model)
    model, tokenizer = load_model(folder)
    longest = model.settings.max_position_embeddings
    if settings.max_tokens > longest:
        raise ConfigError(
            f"max_tokens: got {settings.max_tokens}; the model's positions end at {longest}, so "
            "give less"
        )
    sources, targets = pairs_of(settings)
    print(f"pairs        {len(sources):,} of {settings.task_config}", flush=True)
    shapes = [model.settings.model_copy(update={"init_seed": seed}) for seed in settings.seeds]
    models = {OURS: [model], SCRATCH: map(build_model, shapes)}
    scored = {
        name: [
            retrieval_scores(
                embed(one, tokenizer, sources, settings.max_tokens),
                embed(one, tokenizer, targets, settings.max_tokens),
            )
            for one in of_arm
        ]
        for name, of_arm in models.items()
    }
    entry = entry_of_scores(scored, len(sources))
    entry["base"] = hash_model(model_folder(folder))
    entry["told"] = {
        "Base": f"{settings.model}, sha256 {entry['base']}",
        "Pairs": f"{len(sources):,} of the test part of {settings.task_config}",
        "Nearest": "by the cosine of mean final hidden states, each language less its mean; by "
        f"chance {100 / len(sources):.2g} %",
    }
    print_entry(entry)
    docs = Path(arguments.docs) if arguments.docs else output_path("results")
    print(f"table        {publish_entry(docs, KEY, entry, origin)}")
    return 0


def pairs_of(settings: RetrievalSettings) -> tuple[list[str], list[str]]:
    """Sentences and their translations, each of them once."""
    from glm_dist.tasks.examples import take
    from glm_dist.train.finetune import read_splits
    from glm_dist.train.finetune_settings import FinetuneSettings

    given = load_config(FinetuneSettings, settings.task_config)
    if given.task.kind != "translation":
        raise ConfigError(
            f"task_config: {settings.task_config} is {given.task.kind}; give one of translation"
        )
    unique, seen = [], set[str]()
    for example in read_splits(given)["test"]:
        both = {example.text("source"), example.text("target")}
        if not seen & both:
            unique.append(example)
        seen |= both
    if len(unique) < 2:
        raise ConfigError("task_config: has no two test pairs; give task.test or task.test_share")
    drawn = take(unique, settings.num_pairs, settings.seeds[0])
    return [one.text("source") for one in drawn], [one.text("target") for one in drawn]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that are no settings."""
    parser.add_argument(
        "--docs", metavar="FOLDER", help="where the table lies; by default below GLM_DIST_HOME"
    )


if __name__ == "__main__":
    sys.exit(run_job(main, RetrievalSettings, description=__doc__ or "", add_flags=add_flags))
