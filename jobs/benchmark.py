#!/usr/bin/env python3
"""Measure against what else one could do, both in one run on one machine.

python jobs/benchmark.py train [--json FILE] [--docs FOLDER] [--config FILE] [key=value …]

train: tokens/s of the whole distributed path (Ray Data → one DeepSpeed worker under Ray Train)
against a bare torch loop over the same rows, by turns.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from _job import run_job
from _ray import connect

from glm_dist.config import output_path
from glm_dist.errors import ConfigError
from glm_dist.train.settings import PretrainSettings

ROOT = Path(__file__).resolve().parents[1]
WARMUP_WINDOWS = 2
BAR = 0.9


def train(settings: PretrainSettings, arguments: argparse.Namespace) -> None:
    """Distributed and bare by turns; the ratio of their median tokens/s."""
    from glm_dist.data.shards import TokenDataset
    from glm_dist.metrics.provenance import provenance
    from glm_dist.train.launch import resolve

    windows = settings.num_steps // settings.log_every_steps
    if windows <= WARMUP_WINDOWS:
        raise ConfigError(
            f"duration: {settings.num_steps} steps are {windows} windows of log_every_steps "
            f"{settings.log_every_steps}, of which {WARMUP_WINDOWS} only warm up; take more steps"
        )
    dataset = TokenDataset.open(output_path(settings.dataset))
    settings = resolve(settings, dataset)
    connect(2)
    speeds: dict[str, list[float]] = {"distributed": [], "bare_loop": []}
    for turn in range(1, arguments.turns + 1):
        for kind, measure in (("distributed", distributed_speeds), ("bare_loop", bare_speeds)):
            found = measure(settings, turn)
            speeds[kind] += found
            print(f"turn {turn}/{arguments.turns}  {kind:<12} {median(found):>9,.0f} tokens/s")
    medians = {kind: median(values) for kind, values in speeds.items()}
    figures = {
        "vs_bare_loop": medians["distributed"] / medians["bare_loop"],
        "tokens_per_second": medians,
        "windows": speeds,
        "parameters": settings.model.num_parameters,
        "sequence_length": settings.rows.sequence_length,
        "global_batch_size": settings.batch.global_batch_size,
        "steps_a_turn": settings.num_steps,
        "dtype": settings.engine.dtype,
        "zero_stage": settings.engine.zero_stage,
        "origin": provenance(),
    }
    show(figures, arguments)


def distributed_speeds(settings: PretrainSettings, turn: int) -> list[float]:
    """Tokens/s of each window of a run in a folder of its own, warm-up apart."""
    from glm_dist.metrics.sinks import read_metrics
    from glm_dist.train.launch import launch

    launched = launch(settings.model_copy(update={"run_folder": str(fresh_folder(turn))}))
    lines = read_metrics(launched.run_folder / "metrics.jsonl")
    return [line["tokens_per_second"] for line in lines if "loss" in line][WARMUP_WINDOWS:]


def bare_speeds(settings: PretrainSettings, turn: int) -> list[float]:
    """The same figures of the bare loop."""
    import torch
    from _bare_loop import bare_loop

    from glm_dist.data.shards import TokenDataset
    from glm_dist.train.probe import packed_steps

    torch.set_num_threads(max(1, int(settings.workers.cpus_per_worker)))
    uses_gpu = torch.cuda.is_available() and settings.workers.use_gpu is not False
    dataset = TokenDataset.open(output_path(settings.dataset))
    rows_per_step = settings.batch.global_batch_size
    steps = list(packed_steps(settings, dataset, settings.num_steps, rows_per_step))
    seconds = bare_loop(settings, steps, torch.device("cuda" if uses_gpu else "cpu"))
    tokens = [sum(int((rows["segment_ids"] > 0).sum()) for rows in step) for step in steps]
    size = settings.log_every_steps
    return [
        sum(tokens[start : start + size]) / sum(seconds[start : start + size])
        for start in range(WARMUP_WINDOWS * size, len(steps) - size + 1, size)
    ]


def fresh_folder(turn: int) -> Path:
    """A run folder that nothing has been in."""
    number = 0
    while (folder := output_path(f"benchmarks/train-{number:04d}-{turn}")).exists():
        number += 1
    return folder


def show(figures: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the ratio, write what was asked for, and say where it lies."""
    from glm_dist.metrics.publish import publish

    ratio = figures["vs_bare_loop"]
    verdict = "holds" if ratio >= BAR else "is missed: --docs or --json holds every window's speed"
    print(f"distributed / bare loop  {ratio:.3f}; the bar of {BAR} {verdict}")
    if arguments.json:
        text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
        Path(arguments.json).write_text(text, encoding="utf-8")
        print(f"figures      {arguments.json}")
    if arguments.docs:
        picture = Path(arguments.docs) / "train-tokens_per_second.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(picture, figures)
        page = publish(Path(arguments.docs), "train", describe(figures), figures, {})
        print(f"page         {page}")
    print("next         python jobs/pretrain.py --plan   # what a run of your own will take")


def describe(figures: dict[str, Any]) -> str:
    """The page's table."""
    speeds = figures["tokens_per_second"]
    bare = speeds["bare_loop"]
    rows = "\n".join(
        f"| {kind.replace('_', ' ')} | {speed:,.0f} | {speed / bare:.3f} |"
        for kind, speed in speeds.items()
    )
    return (
        f"# Training speed\n\nA GLM of {figures['parameters']:,} parameters, rows of "
        f"{figures['sequence_length']} tokens, {figures['global_batch_size']} rows a step, "
        f"{figures['dtype']}, one worker. *Distributed* is the whole path: Ray Data tasks build "
        f"and stream the rows, DeepSpeed ZeRO-{figures['zero_stage']} trains under Ray Train, "
        "metrics included. *Bare loop* is torch alone over rows that lie ready in memory "
        "(`jobs/_bare_loop.py`). Median over windows, by turns in one run; only the ratio means "
        f"anything elsewhere.\n\n| | tokens/s | against the bare loop |\n|---|---|---|\n{rows}\n\n"
        "![tokens per second](train-tokens_per_second.png)\n"
    )


def draw(path: Path, figures: dict[str, Any]) -> None:
    """A bar for each contestant, a point for each window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6))
    axes = figure.subplots()
    for place, (kind, speed) in enumerate(figures["tokens_per_second"].items()):
        axes.barh(place, speed, color="#4c72b0", height=0.6)
        windows = figures["windows"][kind]
        axes.plot(windows, [place] * len(windows), ".", color="black", markersize=4)
    axes.set(yticks=range(2), yticklabels=["distributed", "bare loop"], xlabel="tokens a second")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130, bbox_inches="tight")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that are no settings."""
    parser.set_defaults(config=str(ROOT / "jobs/configs/benchmark_train.yaml"))
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--docs", metavar="FOLDER", help="write page, picture and figures there")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each by turns")


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        code = run_job(
            train,
            PretrainSettings,
            description=__doc__ or "",
            add_flags=add_flags,
            argv=sys.argv[2:],
        )
        sys.exit(code)
    print(__doc__)
    sys.exit(0 if sys.argv[1:2] in (["--help"], ["-h"]) else 2)
