#!/usr/bin/env python3
"""Bits per byte and perplexity of models on held-out text, by language, beside an n-gram model.

python jobs/perplexity.py dataset=data/base models='[runs/base, runs/base_causal]'
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _job import model_path, run_job
from pydantic import Field

from glm_dist.config import Settings, output_path
from glm_dist.data.rows import RowSettings
from glm_dist.errors import ConfigError

if TYPE_CHECKING:
    from glm_dist.data.shards import TokenDataset
    from glm_dist.evaluate.left_to_right import Predicted
    from glm_dist.model import GLM

WIDTH = 24


class PerplexitySettings(Settings):
    """Which models predict which text."""

    dataset: str
    """Folder made by prepare_data; its validation split is predicted, n-grams are of the other."""
    models: list[str] = []
    """Finished runs or model folders, of the dataset's tokenizer; below GLM_DIST_HOME if relative.
    They predict whole texts, which masked models have not learnt."""
    rows: RowSettings = RowSettings(sequence_length=256)
    """How texts are cut: nothing is predicted from more than a row."""
    num_rows: int = Field(256, ge=1)
    """Held-out rows at most."""
    micro_batch_size: int = Field(8, ge=1)
    """Rows that go through a model together."""
    ngram_order: int = Field(5, ge=0)
    """Longest n-gram of the Kneser-Ney model; 0 for none."""
    output: str = "results/perplexity.json"
    """File of the figures, below GLM_DIST_HOME if relative."""


def main(settings: PerplexitySettings, arguments: argparse.Namespace) -> int:
    """Predict, print a table a language, write the figures down."""
    from glm_dist.data.shards import TokenDataset
    from glm_dist.evaluate.left_to_right import (
        count_ngrams,
        forward_of_model,
        forward_of_ngrams,
        left_to_right,
        predict,
    )
    from glm_dist.evaluate.perplexity_page import publish_perplexity
    from glm_dist.metrics.provenance import provenance

    if not settings.models and not settings.ngram_order:
        raise ConfigError("models: none is named and ngram_order is 0; give something to measure")
    origin = provenance()
    dataset = TokenDataset.open(output_path(settings.dataset))
    models = open_models(dataset, settings)
    heldout = left_to_right(dataset, settings.rows, settings.num_rows, settings.micro_batch_size)
    found = {name: predict(heldout, forward_of_model(model)) for name, model in models.items()}
    if settings.ngram_order:
        ngrams = count_ngrams(dataset, settings.rows, settings.ngram_order)
        print(ngrams.describe(), flush=True)
        found[f"{settings.ngram_order}-gram"] = predict(heldout, forward_of_ngrams(ngrams))
    figures = {name: figures_of(predicted, dataset.languages) for name, predicted in found.items()}
    show(figures)
    path = output_path(settings.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"dataset": settings.dataset, "num_rows": len(heldout.text_mask)}
    kept |= {"sequence_length": settings.rows.sequence_length, "origin": origin}
    kept |= {"train_tokens": dataset.num_tokens("train")}
    path.write_text(json.dumps({**kept, "figures": figures}, indent=1, ensure_ascii=False))
    print(f"figures      {path}")
    if arguments.docs:
        print(f"page         {publish_perplexity(Path(arguments.docs), figures, kept)}")
    return 0


def open_models(dataset: "TokenDataset", settings: PerplexitySettings) -> dict[str, "GLM"]:
    """The models by name, each of which reads the dataset's tokens.

    Raises:
        ConfigError: naming each that has another tokenizer, predicts no text, or reads less than a
            row.
    """
    from glm_dist.inference import load_model

    models, problems = {}, []
    for name in settings.models:
        models[name], tokenizer = load_model(model_path(name))
        if tokenizer.sha256 != dataset.tokenizer.sha256:
            problems.append(
                f"models: {name} has another tokenizer than {dataset.folder}; prepare the text "
                "with tokenizer_path set to the model's"
            )
        shape, length = models[name].settings, settings.rows.sequence_length
        if shape.head.is_classifier:
            problems.append(f"models: {name} scores labels and predicts no text; give its base")
        if length > shape.max_position_embeddings:
            problems.append(
                f"rows.sequence_length: {length} is more than the {shape.max_position_embeddings} "
                f"positions of {name}; set it to {shape.max_position_embeddings} at most"
            )
    if problems:
        raise ConfigError(problems)
    return models


def figures_of(predicted: "Predicted", languages: list[str]) -> dict[str, Any]:
    """By language bits a byte with their interval and perplexity; loss by place."""
    from glm_dist.evaluate.score import interval

    by_language = {
        language: {
            **interval([predicted.bits_per_byte(language)])._asdict(),
            "perplexity": predicted.perplexity(language),
        }
        for language in languages
        if (predicted.languages == language).any()
    }
    return {"languages": by_language, "nats_by_place": predicted.nats_by_place()}


def show(figures: dict[str, dict[str, Any]]) -> None:
    """One block a language, and one of places in the text."""
    languages = next(iter(figures.values()))["languages"]
    for language in languages:
        print(f"\n{language}: bits a byte (95 % interval), perplexity of a token")
        for name, one in figures.items():
            line = one["languages"][language]
            print(
                f"  {name:<{WIDTH}} {line['value']:.3f} ({line['low']:.3f} to {line['high']:.3f})  "
                f"{line['perplexity']:>9,.1f}"
            )
    print("\nnats a token, by how many tokens of the text stand before it")
    places = list(next(iter(figures.values()))["nats_by_place"])
    print(" " * (WIDTH + 2), *(f"{place:>9}" for place in places))
    for name, one in figures.items():
        print(f"  {name:<{WIDTH}}", *(f"{nats:>9.3f}" for nats in one["nats_by_place"].values()))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that are no settings."""
    parser.add_argument("--docs", metavar="FOLDER", help="write a page with a picture there")


if __name__ == "__main__":
    description = __doc__ or ""
    sys.exit(run_job(main, PerplexitySettings, description=description, add_flags=add_flags))
