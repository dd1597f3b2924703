#!/usr/bin/env python3
"""Measure against what else one could do, both in one run on one machine.

python jobs/benchmark.py train [--json FILE] [--docs FOLDER] [--config FILE] [key=value …]

train: tokens/s of the whole distributed path (Ray Data → one DeepSpeed worker under Ray Train)
against a bare torch loop over the same rows, by turns.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Turn:
    """What one measurement of one contestant found, warm-up apart."""

    speeds: list[float]
    """Tokens/s of each window of `log_every_steps`."""
    peak_memory_bytes: int
    """The most its process held, start-up included."""
    engine: dict[str, Any]
    """What the engine says of itself; empty for the bare loop."""
    data_wait_share: float
    """Share of the time in which the worker waited for rows; the bare loop never does."""


def train(settings: PretrainSettings, arguments: argparse.Namespace) -> None:
    """Distributed and bare by turns; the ratio of their median tokens/s."""
    from glm_dist.data.shards import TokenDataset
    from glm_dist.train.launch import ROW_TASK_CPUS, resolve

    check(settings, arguments.turns)
    dataset = TokenDataset.open(output_path(settings.dataset))
    settings = resolve(settings, dataset)
    connect(math.ceil(settings.workers.cpus_per_worker) + ROW_TASK_CPUS)
    load = os.getloadavg()[0]
    turns: dict[str, list[Turn]] = {"distributed": [], "bare_loop": []}
    for number in range(1, arguments.turns + 1):
        for kind, measure in (("distributed", run_distributed), ("bare_loop", run_bare)):
            label = f"turn {number}/{arguments.turns}  {kind:<12}"
            print(f"{label} {settings.num_steps} steps …", flush=True)
            turns[kind].append(measure(settings))
            print(f"{label} {median(turns[kind][-1].speeds):,.0f} tokens/s", flush=True)
    show({**collect(settings, turns), "load_average_before": load}, arguments)


def check(settings: PretrainSettings, turns: int) -> None:
    """Refuse what would give no figures or figures that cannot be compared.

    Raises:
        ConfigError: with every problem.
    """
    problems = []
    windows = settings.num_steps // settings.log_every_steps
    if windows <= WARMUP_WINDOWS:
        problems.append(
            f"duration: {settings.num_steps} steps are {windows} windows of log_every_steps "
            f"{settings.log_every_steps}, of which {WARMUP_WINDOWS} only warm up; take at least "
            f"{(WARMUP_WINDOWS + 1) * settings.log_every_steps} steps"
        )
    if settings.workers.num_workers != 1:
        problems.append(
            f"workers.num_workers: got {settings.workers.num_workers}; the bare loop is one "
            "process, add workers.num_workers=1"
        )
    if turns < 1:
        problems.append(f"--turns: got {turns}; at least 1 is needed")
    if problems:
        raise ConfigError(problems)


def run_distributed(settings: PretrainSettings) -> Turn:
    """A run in a folder of its own, read from the metrics it writes."""
    from glm_dist.metrics.sinks import read_metrics
    from glm_dist.train.launch import launch

    folder = launch(settings.model_copy(update={"run_folder": str(fresh_folder())})).run_folder
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    warm, last = lines[WARMUP_WINDOWS - 1], lines[-1]
    data, compute = (
        last[f"seconds/{part}"] - warm[f"seconds/{part}"] for part in ("data", "compute")
    )
    return Turn(
        speeds=[line["tokens_per_second"] for line in lines[WARMUP_WINDOWS:]],
        peak_memory_bytes=last["peak_memory_bytes"],
        engine=json.loads((folder / "final.json").read_text(encoding="utf-8"))["engine"],
        data_wait_share=data / (data + compute),
    )


def run_bare(settings: PretrainSettings) -> Turn:
    """The bare loop in a fresh process, as a worker is one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure_bare, settings).result()


def _measure_bare(settings: PretrainSettings) -> Turn:
    import torch
    from _bare_loop import bare_loop

    from glm_dist.data.shards import TokenDataset
    from glm_dist.engine.device import choose_dtype
    from glm_dist.metrics.memory import peak_bytes
    from glm_dist.model import build_model
    from glm_dist.train.probe import packed_steps

    torch.set_num_threads(max(1, int(settings.workers.cpus_per_worker)))
    uses_gpu = torch.cuda.is_available() and settings.workers.use_gpu is not False
    device = torch.device("cuda" if uses_gpu else "cpu")
    dataset = TokenDataset.open(output_path(settings.dataset))
    rows_per_step = settings.batch.global_batch_size
    steps = list(packed_steps(settings, dataset, settings.num_steps, rows_per_step))
    model = build_model(settings.model).to(device, choose_dtype(settings.engine, device))
    seconds = bare_loop(model, settings, steps)
    tokens = [sum(int((rows["segment_ids"] > 0).sum()) for rows in step) for step in steps]
    size = settings.log_every_steps
    speeds = [
        sum(tokens[start : start + size]) / sum(seconds[start : start + size])
        for start in range(WARMUP_WINDOWS * size, len(steps) - size + 1, size)
    ]
    return Turn(speeds, peak_bytes(device), engine={}, data_wait_share=0.0)


def collect(settings: PretrainSettings, turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """The figures under the names they are published by."""
    from glm_dist.metrics.provenance import provenance

    windows = {kind: [s for turn in found for s in turn.speeds] for kind, found in turns.items()}
    medians = {kind: median(values) for kind, values in windows.items()}
    peaks = {kind: max(turn.peak_memory_bytes for turn in found) for kind, found in turns.items()}
    engine = turns["distributed"][0].engine
    return {
        "vs_bare_loop": medians["distributed"] / medians["bare_loop"],
        "vs_bare_loop_by_turn": [
            median(ours.speeds) / median(bare.speeds)
            for ours, bare in zip(turns["distributed"], turns["bare_loop"], strict=True)
        ],
        "tokens_per_second": medians,
        "windows": windows,
        "peak_memory_bytes": peaks,
        "data_wait_share": median(turn.data_wait_share for turn in turns["distributed"]),
        "parameters": settings.model.num_parameters,
        "sequence_length": settings.rows.sequence_length,
        "global_batch_size": settings.batch.global_batch_size,
        "micro_batch_size": settings.batch.micro_batch_size,
        "steps_a_turn": settings.num_steps,
        "warmup_steps_a_turn": WARMUP_WINDOWS * settings.log_every_steps,
        "threads": max(1, int(settings.workers.cpus_per_worker)),
        **{name: engine[name] for name in ("backend", "zero_stage", "dtype", "device")},
        "origin": provenance(),
    }


def fresh_folder() -> Path:
    """A run folder that nothing has been in."""
    number = 0
    while (folder := output_path(f"benchmarks/train-{number:04d}")).exists():
        number += 1
    return folder


def show(figures: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the ratio, write what was asked for, and say where it lies."""
    from glm_dist.metrics.publish import publish

    ratio = figures["vs_bare_loop"]
    verdict = "holds" if ratio >= BAR else "is missed"
    by_turn = ", ".join(f"{value:.3f}" for value in figures["vs_bare_loop_by_turn"])
    print(f"distributed / bare loop  {ratio:.3f} (by turn {by_turn}); the bar of {BAR} {verdict}")
    print(
        f"load of the machine      {figures['load_average_before']:.1f} processes before it began"
    )
    print(f"waiting for rows         {figures['data_wait_share']:.1%} of the distributed time")
    for kind, peak in figures["peak_memory_bytes"].items():
        print(f"peak memory              {peak / 2**20:,.0f} MiB {kind.replace('_', ' ')}")
    print(f"runs         {output_path('benchmarks')}")
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
    speeds, peaks = figures["tokens_per_second"], figures["peak_memory_bytes"]
    rows = "\n".join(
        f"| {kind.replace('_', ' ')} | {speed:,.0f} | {speed / speeds['bare_loop']:.3f} "
        f"| {peaks[kind] / 2**20:,.0f} |"
        for kind, speed in speeds.items()
    )
    by_turn = ", ".join(f"{value:.3f}" for value in figures["vs_bare_loop_by_turn"])
    return (
        f"# Training speed\n\nA GLM of {figures['parameters']:,} parameters, rows of "
        f"{figures['sequence_length']} tokens, {figures['global_batch_size']} rows a step in "
        f"micro-batches of {figures['micro_batch_size']}, {figures['dtype']} on "
        f"{figures['device']}, one worker, {figures['threads']} torch thread(s). *Distributed* is "
        "the whole path: Ray Data tasks build and stream the rows, "
        f"{figures['backend']} (ZeRO stage {figures['zero_stage']}) trains under Ray Train, "
        "metrics included. *Bare loop* is torch alone over rows that lie ready in memory "
        "(`jobs/_bare_loop.py`). Median over windows, by turns in one run, "
        f"{figures['steps_a_turn']} steps a turn of which {figures['warmup_steps_a_turn']} warm "
        "up; only the ratio means anything elsewhere.\n\n"
        "| | tokens/s | against the bare loop | peak memory of the process, MiB |\n"
        f"|---|---|---|---|\n{rows}\n\n"
        f"Ratio of each turn: {by_turn}. The worker waited for rows in "
        f"{figures['data_wait_share']:.1%} of its time. Before the run began, "
        f"{figures['load_average_before']:.1f} other processes were running on average.\n\n"
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
