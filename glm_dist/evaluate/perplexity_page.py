"""How well models predict held-out text, as a page: by language, and by place in the text."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glm_dist.evaluate.pictures import draw_lines
from glm_dist.metrics.publish import publish

PAGE, PICTURE = "perplexity", "places.svg"
Figures = Mapping[str, Mapping[str, Any]]
"""By model `languages` (value, low, high, perplexity) and `nats_by_place`."""


def publish_perplexity(docs: Path, figures: Figures, kept: Mapping[str, Any]) -> Path:
    """Write page, figures and picture below `docs`; the page.

    Args:
        docs: made if missing.
        figures: of all models.
        kept: what they are of; `origin` is what `provenance` gave.
    """
    lines = {name: list(one["nats_by_place"].values()) for name, one in figures.items()}
    places = list(next(iter(figures.values()))["nats_by_place"])
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / PICTURE
        axes = ("tokens of the text before it", "nats a token")
        draw_lines(picture, places, lines, "What the text before a token is worth", axes)
        return publish(
            docs, PAGE, page_of(figures, kept), {**kept, "figures": figures}, {PICTURE: picture}
        )


def page_of(figures: Figures, kept: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    languages = list(next(iter(figures.values()))["languages"])
    rows = [
        [name, *(_shown(one["languages"][language]) for language in languages)]
        for name, one in figures.items()
    ]
    places = list(next(iter(figures.values()))["nats_by_place"])
    by_place = [
        [name, *(f"{nats:.3f}" for nats in one["nats_by_place"].values())]
        for name, one in figures.items()
    ]
    return "\n".join(
        [
            "# Bits per byte of held-out text",
            "",
            f"{kept['num_rows']:,} rows of {kept['sequence_length']} tokens at most from the "
            f"validation split of `{kept['dataset']}`, predicted from left to right: a prefix "
            "model generates each whole at its `[gMASK]`. In brackets the 95 % interval of a "
            "bootstrap over documents; behind it the perplexity of a token. Bits per byte compare "
            "across tokenizers, perplexities do not. An n-gram model has counted all "
            f"{kept['train_tokens']:,} tokens of the training split, which a model need not have "
            "seen.",
            "",
            *_table(["", *languages], rows),
            "",
            "Nats a token, by how many tokens of the text stand before it:",
            "",
            *_table(["", *places], by_place),
            "",
            f"![loss by place]({PICTURE})",
            "",
        ]
    )


def _shown(one: Mapping[str, float]) -> str:
    return f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f}), {one['perplexity']:,.1f}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
