"""What stays of a run for people: curves as a picture, figures as a page and as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glm_dist.data.shards import TokenDataset
from glm_dist.engine.adapters import hash_model
from glm_dist.engine.storage import read_json_lines
from glm_dist.metrics.publish import publish
from glm_dist.metrics.sinks import METRICS_FILE, read_metrics
from glm_dist.objective import Mode
from glm_dist.train.attempt import read_attempts
from glm_dist.train.goodput import STEPS, account
from glm_dist.train.settings import PretrainSettings
from glm_dist.train.supervise import Journal
from glm_dist.train.worker import EVENTS_FILE, MODEL_FOLDER

CURVE = "loss.png"
TIME = "time.png"


def write_report(
    run_folder: Path, settings: PretrainSettings, dataset: TokenDataset, origin: dict[str, Any]
) -> dict[str, Any]:
    """Write `report.md`, `summary.json` and two pictures; return the summary.

    `origin` is what `provenance` gave before the training began.
    """
    lines = read_metrics(run_folder / METRICS_FILE)
    summary = {**summarise(run_folder, lines, settings, dataset), "origin": origin}
    resumed = [attempt.train_state.step for attempt in read_attempts(run_folder)[1:]]
    draw_curve(run_folder / CURVE, lines, resumed)
    draw_time(run_folder / TIME, summary["seconds"], summary["goodput"])
    (run_folder / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False))
    (run_folder / "report.md").write_text(_page(settings, summary), encoding="utf-8")
    return summary


def publish_report(run_folder: Path, settings: PretrainSettings, docs: Path) -> Path:
    """A copy of the report for `docs/`, with where it comes from; the page."""
    summary = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
    pictures = {CURVE: run_folder / CURVE, TIME: run_folder / TIME}
    return publish(docs, settings.name, _page(settings, summary), summary, pictures)


def summarise(
    run_folder: Path,
    lines: list[dict[str, Any]],
    settings: PretrainSettings,
    dataset: TokenDataset,
) -> dict[str, Any]:
    """The run in figures."""
    training = [line for line in lines if "loss" in line]
    spent = account(Journal(run_folder).read(), list(read_json_lines(run_folder / EVENTS_FILE)))
    final, model = run_folder / "final.json", run_folder / MODEL_FOLDER
    figures = json.loads(final.read_text()) if final.exists() else {}
    return {
        "name": settings.name,
        "steps": training[-1]["step"] if training else 0,
        "tokens": training[-1]["tokens"] if training else 0,
        "parameters": settings.model.num_parameters,
        "dataset": dataset.fingerprint,
        "excluded": dataset.manifest.get("report", {}).get("excluded", {}),
        "weights_sha256": hash_model(model) if model.exists() else None,
        "train_loss": training[-1]["loss"] if training else None,
        "attempts": len(read_attempts(run_folder)),
        "goodput": spent.goodput,
        "seconds": spent.seconds,
        **figures,
    }


def draw_curve(path: Path, lines: list[dict[str, Any]], resumed: Sequence[int] = ()) -> None:
    """Training loss by mode, and what it is judged by: held-out text, or a task's dev examples."""
    axes, figure = _axes("Loss", "optimizer step", "nats a token")
    training = [line for line in lines if "loss" in line]
    heldout = [line for line in lines if "heldout/loss" in line]
    for name in (mode.name.lower() for mode in Mode):
        key = f"loss/{name}"
        points = [(line["step"], line[key]) for line in training if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=f"training, {name}", linewidth=1)
    if heldout:
        steps = [line["step"] for line in heldout]
        losses = [line["heldout/loss"] for line in heldout]
        axes.plot(steps, losses, "o-", color="black", label="held-out, text tokens")
        entropy = heldout[-1]["heldout/unigram_entropy"]
        axes.axhline(entropy, linestyle="--", color="grey", label="held-out unigram entropy")
    dev = [(line["step"], line["dev/loss"]) for line in lines if "dev/loss" in line]
    if dev:
        axes.plot(*zip(*dev, strict=True), "o-", color="black", label="dev examples")
    for number, step in enumerate(resumed):
        axes.axvline(
            step, linestyle=":", color="red", label=None if number else "went on from here"
        )
    if axes.lines:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=130, bbox_inches="tight")


def draw_time(path: Path, seconds: dict[str, float], goodput: float) -> None:
    """Wall time by part over all attempts; what lasted stands out."""
    axes, figure = _axes(f"Where the time went: goodput {goodput:.0%}", "seconds", "")
    parts = sorted(seconds, key=lambda part: seconds[part])
    colors = ["#4c72b0" if part == STEPS else "#b0b0b0" for part in parts]
    bars = axes.barh(parts, [seconds[part] for part in parts], color=colors)
    axes.bar_label(bars, fmt="%.0f s", padding=3)
    axes.margins(x=0.15)
    figure.savefig(path, dpi=130, bbox_inches="tight")


def _axes(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return axes, figure


def _page(settings: PretrainSettings, summary: dict[str, Any]) -> str:
    rows = [
        ("parameters", f"{summary['parameters']:,}"),
        ("steps", f"{summary['steps']:,} of {settings.num_steps:,}"),
        ("tokens trained on, padding apart", f"{summary['tokens']:,}"),
        ("launches of the workers", str(summary["attempts"])),
        ("goodput: share of the wall time in steps that lasted", f"{summary['goodput']:.1%}"),
    ]
    rows += [
        (name.removeprefix("heldout/").replace("_", " "), f"{value:.4g}")
        for name, value in summary.items()
        if name.startswith("heldout/")
    ]
    rows += [
        (name.replace("/", " ").replace("_", " "), f"{value:.4g}")
        for name, value in summary.items()
        if name.startswith("dev/") or name == "best_step"
    ]
    if summary["weights_sha256"]:
        rows.append(("sha256 of the weights", f"`{summary['weights_sha256']}`"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    told = (
        "Held-out figures are on text tokens alone, `<eop>` and other special tokens apart; the "
        "unigram entropy is that of the same tokens.\n\n"
    )
    return (
        f"# Run {settings.name}\n\n| figure | value |\n|---|---|\n{table}\n\n"
        f"{told if 'heldout/loss' in summary else ''}![loss]({CURVE})\n\n![time]({TIME})\n"
        f"{_excluded(summary['excluded'])}"
    )


def _excluded(counts: Mapping[str, int]) -> str:
    """Evaluation sets that the training text was cleared of, where it was."""
    if not counts:
        return ""
    rows = "\n".join(f"| `{path}` | {count:,} |" for path, count in counts.items())
    return (
        "\nThe training text was cleared of these evaluation sets first.\n\n"
        f"| set | documents left out that repeat its text |\n|---|---|\n{rows}\n"
    )
