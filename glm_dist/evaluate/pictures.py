"""Pictures of scores: confusion and reliability.

They are SVG with their text as text: whoever shows them has the fonts of the reader's languages,
which the machine that measured need not have.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glm_dist.evaluate.calibration import ReliabilityBin, expected_calibration_error

LABELS_WITH_COUNTS = 20


def draw_confusion(path: Path, table: np.ndarray, labels: Sequence[str], title: str) -> None:
    """Counts [labels, labels] as a grid, shaded by the share of each row."""
    size = 2.5 + 0.45 * len(labels)
    figure, axes = _axes(title, (size, size))
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="right")
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), labels)
    if len(labels) <= LABELS_WITH_COUNTS:
        for (row, column), count in np.ndenumerate(table):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, size=8)
    _save(figure, path)


def draw_reliability(path: Path, curves: dict[str, Sequence[ReliabilityBin]], title: str) -> None:
    """Accuracy against confidence for each named list of bins; the diagonal is honest."""
    figure, axes = _axes(title, (4.5, 4.5))
    axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    for name, bins in curves.items():
        error = expected_calibration_error(bins)
        points = [(one.confidence, one.accuracy) for one in bins]
        axes.plot(*zip(*points, strict=True), "o-", label=f"{name}: ECE {error:.1f} %")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    _save(figure, path)


def _axes(title: str, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    axes = figure.subplots()
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    """The same figure gives the same bytes."""
    import matplotlib

    with (
        warnings.catch_warnings(),
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "glm_dist"}),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})
