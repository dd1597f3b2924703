"""Ways to do one thing, compared on the same tasks at several sizes: figures, a page, a picture.

It stands apart from how answers come about, as `results` does; there the arms of a task are given,
here whoever asks says what the ways are.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glm_dist.evaluate.pictures import draw_arms
from glm_dist.evaluate.score import Score, gain, interval
from glm_dist.metrics.publish import publish

PICTURE = "ways.svg"
TOLD = (
    "Percent, the mean over seeds; in brackets the 95 % interval of a bootstrap over test examples "
    "and seeds, and behind it the standard deviation over seeds. The gain is that of the first way "
    "over the other, paired on the same examples; it counts where its interval excludes 0."
)
Compared = dict[str, Any]
"""One task at one size: `task`, `size`, `metric`, `examples`, and by way `ways` and `gains`."""


def compared(
    task: str, size: str, num_examples: int, scores: Mapping[str, Sequence[Score]]
) -> Compared:
    """The figures of a task at a size.

    Args:
        task: its name.
        size: what readers know the size by.
        num_examples: of the test split.
        scores: by way and seed; the first way is the one that gains are of.
    """
    first, *others = scores
    ways = {}
    for way, by_seed in scores.items():
        values = [score.value for score in by_seed]
        found = interval(by_seed)
        ways[way] = {
            "score": found.value,
            "interval": [found.low, found.high],
            "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
            "seeds": values,
        }
    gains = {}
    for other in others:
        found = gain(scores[first], scores[other])
        gains[other] = {"score": found.value, "interval": [found.low, found.high]}
    return {
        "task": task,
        "size": size,
        "metric": scores[first][0].name,
        "examples": num_examples,
        "ways": ways,
        "gains": gains,
    }


def publish_comparison(
    docs: Path, name: str, title: str, rows: Sequence[Compared], origin: Mapping[str, Any]
) -> Path:
    """Write page, figures and picture below `docs`; the page."""
    page = page_of(title, rows)
    figures = {"title": title, "rows": list(rows), "origin": dict(origin)}
    ways = {way: way for row in rows for way in row["ways"]}
    shown = {f"{row['task']}, {row['size']}": {"arms": row["ways"]} for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / PICTURE
        draw_arms(picture, shown, ways)
        return publish(docs, name, page, figures, {PICTURE: picture})


def page_of(title: str, rows: Sequence[Compared]) -> str:
    """The page in Markdown."""
    ways = list(dict.fromkeys(way for row in rows for way in row["ways"]))
    head = ["task", "trained on", "score", "test examples", *ways]
    head += [f"{ways[0]} over {other}" for other in ways[1:]]
    lines = [f"# {title}", "", TOLD, "", _row(head), "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["task"], row["size"], row["metric"], f"{row['examples']:,}"]
        cells += [_shown(row["ways"].get(way), ".1f") for way in ways]
        cells += [_shown(row["gains"].get(way), "+.1f") for way in ways[1:]]
        lines.append(_row(cells))
    return "\n".join([*lines, "", f"![{title}]({PICTURE})", ""])


def _shown(found: Mapping[str, Any] | None, form: str) -> str:
    if found is None:
        return "–"
    low, high = found["interval"]
    spread = f" ± {found['deviation']:.1f}" if "deviation" in found else ""
    return f"{found['score']:{form}} ({low:{form}} to {high:{form}}){spread}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
