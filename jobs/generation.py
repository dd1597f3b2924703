#!/usr/bin/env python3
"""What a pretrained model writes by itself: bits per byte, variety, and ten samples a language.

python jobs/generation.py models='[runs/base, runs/base_causal]' --docs docs/results
"""

import argparse
import sys
from pathlib import Path

from _job import run_job
from perplexity import PerplexitySettings, open_models
from pydantic import Field
from results import print_entry

from glm_dist.config import output_path

KEY = "generation"


class GenerationJobSettings(PerplexitySettings):
    """Which model goes on with which text, and what predicts beside it."""

    dataset: str = "data/base"
    models: list[str] = Field(["runs/base"], min_length=1)
    """Finished runs or model folders of the dataset's tokenizer, the base first, others beside it;
    below GLM_DIST_HOME if relative."""
    num_texts: int = Field(64, ge=10)
    """Held-out documents of each language that are gone on with, at most."""
    start_tokens: int = Field(16, ge=1)
    """Length of the beginning that is given."""
    text_tokens: int = Field(48, ge=4)
    """Length of what is written."""
    temperature: float = Field(0.8, ge=0)
    """0 takes the likeliest token; above, logits are divided by it and a token is drawn."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Draw among the fewest tokens that hold this probability together."""


def main(settings: GenerationJobSettings, arguments: argparse.Namespace) -> int:
    """Predict, write, and put the figures into the table of tasks."""
    from glm_dist.data.shards import TokenDataset
    from glm_dist.engine.adapters import hash_model
    from glm_dist.engine.folders import model_folder
    from glm_dist.evaluate.generation import (
        REAL_TEXT,
        continue_all,
        generation_entry,
        held_out_starts,
    )
    from glm_dist.evaluate.left_to_right import (
        count_ngrams,
        forward_of_model,
        forward_of_ngrams,
        left_to_right,
        predict,
    )
    from glm_dist.evaluate.results import publish_entry
    from glm_dist.inference import GenerationSettings, Generator
    from glm_dist.metrics.provenance import provenance

    origin, dataset = provenance(), TokenDataset.open(output_path(settings.dataset))
    models = open_models(dataset, settings)
    paths = {Path(path).name if n else "glm": path for n, path in enumerate(settings.models)}
    heldout = left_to_right(dataset, settings.rows, settings.num_rows, settings.micro_batch_size)
    found = {arm: predict(heldout, forward_of_model(models[path])) for arm, path in paths.items()}
    if settings.ngram_order:
        ngrams = count_ngrams(dataset, settings.rows, settings.ngram_order)
        found["ngram"] = predict(heldout, forward_of_ngrams(ngrams))
    lengths = (settings.start_tokens, settings.text_tokens)
    real = {
        language: held_out_starts(dataset, language, settings.num_texts, *lengths)
        for language in dataset.languages
    }
    for language in [language for language, starts in real.items() if not starts]:
        print(f"no text      {language}: no held-out document has {sum(lengths)} tokens")
    sampling = GenerationSettings(
        max_new_tokens=settings.text_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
    )
    written = {
        arm: {
            language: continue_all(Generator(models[path], dataset.tokenizer), starts, sampling)
            for language, starts in real.items()
        }
        for arm, path in paths.items()
    }
    entry = generation_entry(found, {**written, REAL_TEXT: real})
    base = hash_model(model_folder(output_path(settings.models[0])))
    entry["base"] = base
    entry["told"] = {
        "Base": f"{settings.models[0]}, sha256 {base}",
        "Texts": f"{settings.start_tokens} tokens given, {settings.text_tokens} written",
        "Drawn": f"temperature {settings.temperature:g}, top-p {settings.top_p:g}",
    }
    print_entry(entry)
    docs = Path(arguments.docs) if arguments.docs else output_path("results")
    print(f"table        {publish_entry(docs, KEY, entry, origin)}")
    return 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that are no settings."""
    parser.add_argument(
        "--docs", metavar="FOLDER", help="where the table lies; by default below GLM_DIST_HOME"
    )


if __name__ == "__main__":
    sys.exit(run_job(main, GenerationJobSettings, description=__doc__ or "", add_flags=add_flags))
