"""Pictures of scores: confusion, reliability, and arms beside each other.

They are SVG with their text as text: whoever shows them has the fonts of the reader's languages,
which the machine that measured need not have.
"""

import warnings
from collections.abc import Mapping, Sequence
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


def draw_arms(path: Path, tasks: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> None:
    """The scores of a task's arms in one row, each with its interval.

    Args:
        path: of the picture.
        tasks: by name what `results.entry_of` gave.
        names: arms as readers know them; the first one's row is on top.
    """
    figure, axes = _axes("Scores on test, with 95 % intervals", (7.5, 1.5 + 0.9 * len(tasks)))
    for number, (arm, shown) in enumerate(names.items()):
        found = [
            (row - 0.3 + 0.6 * number / max(1, len(names) - 1), task["arms"][arm])
            for row, task in enumerate(tasks.values())
            if arm in task["arms"]
        ]
        if not found:
            continue
        rows, values = [row for row, _ in found], np.array([one["score"] for _, one in found])
        ends = np.array([one["interval"] for _, one in found]).T
        around = np.abs(ends - values)
        axes.errorbar(values, rows, xerr=around, fmt="o", label=shown, markersize=4, capsize=2)
    axes.set_yticks(range(len(tasks)), list(tasks))
    axes.set(xlabel="percent", ylim=(max(1, len(tasks)) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3)
    if axes.containers:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def draw_lines(
    path: Path,
    names: Sequence[str],
    lines: Mapping[str, Sequence[float]],
    title: str,
    axes_names: tuple[str, str],
) -> None:
    """A line for each entry of `lines`, over places that have names."""
    figure, axes = _axes(title, (6.5, 3.5))
    for shown, values in lines.items():
        axes.plot(range(len(names)), values, "o-", label=shown, markersize=4)
    axes.set_xticks(range(len(names)), list(names))
    axes.set(xlabel=axes_names[0], ylabel=axes_names[1])
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, path)


def draw_points(
    path: Path,
    points: Sequence[tuple[float, float, str]],
    best: int,
    title: str,
    axes_names: tuple[str, str],
) -> None:
    """Points by x and y, each with its name; x by its logarithm, and one of them marked as best."""
    figure, axes = _axes(title, (6, 4))
    for number, (x, y, name) in enumerate(points):
        axes.plot(x, y, "o", color="C3" if number == best else "C0")
        axes.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", size=8)
    axes.set(xlabel=axes_names[0], ylabel=axes_names[1], xscale="log")
    axes.grid(alpha=0.3)
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
