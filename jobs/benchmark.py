#!/usr/bin/env python3
"""Measure against what else one could do, all in one run on one machine.

python jobs/benchmark.py train [--peers] [--json FILE] [--docs FOLDER] [--config FILE] [key=value …]
python jobs/benchmark.py parts [--json FILE] [--docs FOLDER] [key=value …]
python jobs/benchmark.py serve [--quick] [--turns N] [--json FILE] [--docs FOLDER] [key=value …]

train: tokens/s of the whole distributed path (Ray Data → one DeepSpeed worker under Ray Train)
against a bare torch loop over the same rows and, with --peers, against the Trainer of transformers,
by turns. --also measures a second model in the same run.
parts: seconds and peak bytes of the loss and of attention against their plain versions.
serve: tokens a CPU-second (on CUDA a second) of the engine against transformers' generate, one by
one and in static batches, and its continuous batching, with the same weights and requests, by
turns; then what HTTP and Ray add to the engine alone. --only measures one of the two anew.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

from _contest import WARMUP_WINDOWS, Turn, contestants, matmul_rate, profile
from _contest_page import collect, describe, draw
from _job import run_job
from _parts import PartsSettings, cost_of, describe_parts
from _parts import parts as all_parts
from _ray import connect
from _serve_contest import (
    PEERS,
    QUICK,
    VLLM,
    Answered,
    Entry,
    ServeContestSettings,
    entries,
    prepare,
)
from _serve_contest import measure as measure_entry
from _serve_online import ONLINE_FIGURES, online
from _serve_online_page import describe_online, draw_online
from _serve_page import collect as collect_serving
from _serve_page import describe as describe_serving
from _serve_page import draw as draw_serving

from glm_dist.config import load_config, output_path
from glm_dist.errors import ConfigError
from glm_dist.train.settings import PretrainSettings

ROOT = Path(__file__).resolve().parents[1]
BARS = {"vs_bare_loop": 0.9, "vs_transformers": 1.5, "vs_transformers_best": 1.15}
"""Ratios that we mean to reach, with the words of the names they are published by."""


def train(settings: PretrainSettings, arguments: argparse.Namespace) -> None:
    """All contestants by turns, for each model; the ratios of their median tokens/s."""
    from glm_dist.metrics.provenance import provenance

    models = [settings]
    if arguments.also:
        models.append(load_config(PretrainSettings, arguments.also, arguments.overrides))
    for model in models:
        check(model, arguments)
    connect(math.ceil(settings.workers.cpus_per_worker) + 1)
    load = os.getloadavg()[0]
    sizes = [measure(model, arguments) for model in models]
    figures = {**sizes[0], "sizes": sizes, "load_average_before": load, "origin": provenance()}
    show(figures, arguments)


def check(settings: PretrainSettings, arguments: argparse.Namespace) -> None:
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
    if arguments.turns < 1:
        problems.append(f"--turns: got {arguments.turns}; at least 1 is needed")
    problems += _peer_problems(settings) if arguments.peers else []
    if problems:
        raise ConfigError(problems)


def _peer_problems(settings: PretrainSettings) -> list[str]:
    """Why the Trainer of transformers cannot take part."""
    from importlib.util import find_spec

    import torch

    from glm_dist.errors import ModelError
    from glm_dist.model.huggingface import config_from_settings

    problems = [
        f'--peers: {name} is not installed; pip install "glm-dist[peers]"'
        for name in ("transformers", "accelerate")
        if find_spec(name) is None
    ]
    try:
        config_from_settings(settings.model, torch.float32)
    except ModelError as error:
        problems.append(f"--peers: {error}")
    return problems


def measure(settings: PretrainSettings, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of one model."""
    from glm_dist.data.shards import TokenDataset
    from glm_dist.train.launch import resolve

    settings = resolve(settings, TokenDataset.open(output_path(settings.dataset)))
    print(f"model        {settings.model.num_parameters / 1e6:,.1f} million parameters")
    rate = matmul_rate(settings)
    print(f"matmul       {rate / 1e9:,.0f} GFLOP/s", flush=True)
    taking_part = contestants(settings, arguments.peers)
    turns: dict[str, list[Turn]] = {kind: [] for kind in taking_part}
    for number in range(1, arguments.turns + 1):
        for kind, run in taking_part.items():
            label = f"turn {number}/{arguments.turns}  {kind:<32}"
            print(f"{label} {settings.num_steps} steps …", flush=True)
            turns[kind].append(run(settings))
            print(f"{label} {median(turns[kind][-1].speeds):,.0f} tokens/s", flush=True)
    return collect(settings, turns, rate, profile(settings))


def show(figures: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the ratios, write what was asked for, and say where it lies."""
    from glm_dist.metrics.publish import publish

    for size in figures["sizes"]:
        print(f"\n{size['parameters'] / 1e6:,.1f} million parameters")
        for name, bar in BARS.items():
            if name in size:
                verdict = "holds" if size[name] >= bar else "is missed"
                print(f"{name:<24} {size[name]:.3f}; the bar of {bar} {verdict}")
        print(f"share of matmul rate     {size['mfu']:.1%}")
        print(f"waiting for rows         {size['data_wait_share']:.1%} of the distributed time")
        for kind, peak in size["peak_memory_bytes"].items():
            print(f"peak memory              {peak / 2**20:,.0f} MiB {kind}")
    load = figures["load_average_before"]
    print(f"\nload         {load:.1f} processes were running before it began")
    print(f"runs         {output_path('benchmarks')}")
    write_json(figures, arguments)
    if arguments.docs:
        draw(Path(arguments.docs) / "train-tokens_per_second.png", figures["sizes"])
        page = publish(Path(arguments.docs), "train", describe(figures["sizes"]), figures, {})
        print(f"page         {page}")
    print("next         python jobs/pretrain.py --plan   # what a run of your own will take")


def parts(settings: PartsSettings, arguments: argparse.Namespace) -> None:
    """Each part's contestants one after the other."""
    from glm_dist.metrics.provenance import provenance
    from glm_dist.metrics.publish import publish

    costs: dict[str, dict[str, Any]] = {}
    for part, versions in all_parts().items():
        costs[part] = {}
        for kind, build in versions.items():
            costs[part][kind] = cost = cost_of(build, settings)
            shown = f"{cost['seconds'] * 1e3:9,.1f} ms {cost['peak_bytes'] / 2**20:9,.0f} MiB"
            print(f"{part:<26}{kind:<16}{shown}", flush=True)
    figures = {"costs": costs, "settings": settings.model_dump(), "origin": provenance()}
    write_json(figures, arguments)
    if arguments.docs:
        page = publish(Path(arguments.docs), "parts", describe_parts(settings, costs), figures, {})
        print(f"page         {page}")
    print("next         python jobs/benchmark.py train --peers   # the whole way")


def serve(settings: ServeContestSettings, arguments: argparse.Namespace) -> None:
    """All contestants by turns; the engine against the best of transformers."""
    from glm_dist.metrics.provenance import provenance

    settings = QUICK if arguments.quick else settings
    load, figures = os.getloadavg()[0], kept_figures(arguments)
    folder = prepare(settings)
    print(f"model        {settings.model.num_parameters / 1e6:,.1f} million parameters: {folder}")
    if arguments.only != "online":
        found = contest(settings, folder, arguments.turns)
        figures |= {**found, "load_average_before": load, "origin": provenance()}
    if arguments.only != "offline":
        print("through HTTP on every way, and the engine alone …", flush=True)
        figures |= online(folder / "causal", settings.online)
    show_serving(figures, arguments)


def kept_figures(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of the part that is not measured, from the folder of docs.

    Raises:
        ConfigError: when there are none, or the new ones would be of another model.
    """
    if arguments.only is None:
        return {}
    flag = f"--only {arguments.only}"
    if arguments.docs is None or arguments.quick:
        raise ConfigError(
            f"{flag}: its figures go beside those of a whole benchmark; say where these lie "
            "by --docs, and leave --quick out"
        )
    path = Path(arguments.docs) / "serve.json"
    if not path.exists():
        raise ConfigError(f"{flag}: {path} is not there; leave it out once to measure all")
    figures = dict(json.loads(path.read_text(encoding="utf-8")))
    keeps_online = arguments.only == "offline"
    return {
        name: each for name, each in figures.items() if (name in ONLINE_FIGURES) == keeps_online
    }


def contest(settings: ServeContestSettings, folder: Path, num_turns: int) -> dict[str, Any]:
    """The figures of all contestants."""
    turns: dict[Entry, list[Answered]] = {}
    errors: dict[str, str] = {}
    for number in range(1, num_turns + 1):
        for entry in entries(settings):
            label = f"turn {number}/{num_turns}  {str(entry):<44}"
            try:
                found = measure_entry(entry, settings, folder)
            except Exception as error:  # a peer's failure is a finding
                if entry.kind not in (*PEERS, VLLM):
                    raise
                name = " ".join(str(entry).split())
                errors[name] = " ".join(str(error).split())[:300]
                print(f"{label} {errors[name]}", flush=True)
                continue
            turns.setdefault(entry, []).append(found)
            print(f"{label} {found.speed:8,.1f} tokens a {found.unit}", flush=True)
    return collect_serving(settings, turns, errors)


def show_serving(figures: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the ratios and write what was asked for."""
    from glm_dist.metrics.publish import publish

    print()
    for name in ("vs_transformers_best", "vs_vllm_cpu", "fixed_shapes_cost", "prefix_vs_causal"):
        found = figures[name] or {}
        shown = ", ".join(f"{key}: {value:.3f}" for key, value in found.items()) or "not measured"
        print(f"{name:<24} {shown}")
    print(f"{'equal_tokens_fp32':<24} {figures['equal_tokens_fp32']}")
    print(f"{'http_ttft_ms_added':<24} {figures['http_ttft_ms_added']:.1f}")
    print(f"{'http_throughput_share':<24} {figures['http_throughput_share']:.3f}")
    print(f"load                     {figures['load_average_before']:.1f} before it began")
    write_json(figures, arguments)
    if arguments.docs:
        draw_serving(Path(arguments.docs) / "serve-tokens.png", figures)
        draw_online(Path(arguments.docs) / "serve-online.png", figures["online"])
        text = describe_serving(figures) + describe_online(figures)
        page = publish(Path(arguments.docs), "serve", text, figures, {})
        print(f"page         {page}")
    print("next         python jobs/serve.py   # answer over HTTP")


def write_json(figures: dict[str, Any], arguments: argparse.Namespace) -> None:
    """The figures as the file that was asked for."""
    if arguments.json:
        text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
        Path(arguments.json).write_text(text, encoding="utf-8")
        print(f"figures      {arguments.json}")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of all benchmarks that are no settings."""
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--docs", metavar="FOLDER", help="write page and figures there")


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """Those of `train`."""
    add_flags(parser)
    parser.set_defaults(config=str(ROOT / "jobs/configs/benchmark_train.yaml"))
    parser.add_argument("--also", metavar="FILE", help="a second config, measured in the same run")
    parser.add_argument("--peers", action="store_true", help="the Trainer of transformers, too")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each by turns")


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    """Those of `serve`."""
    add_flags(parser)
    parser.set_defaults(config=str(ROOT / "jobs/configs/benchmark_serve.yaml"))
    parser.add_argument("--quick", action="store_true", help="a small model, in seconds")
    parser.add_argument(
        "--only",
        choices=("offline", "online"),
        help="measure the engines or what HTTP adds, and leave the other figures of --docs",
    )
    parser.add_argument("--turns", type=int, default=3, help="measurements of each by turns")


def run(name: str, argv: list[str]) -> int:
    """One of the benchmarks; its exit code."""
    about: dict[str, Any] = {"description": __doc__ or "", "argv": argv}
    if name == "train":
        return run_job(train, PretrainSettings, add_flags=add_train_flags, **about)
    if name == "parts":
        return run_job(parts, PartsSettings, add_flags=add_flags, **about)
    if name == "serve":
        return run_job(serve, ServeContestSettings, add_flags=add_serve_flags, **about)
    print(__doc__)
    return 0 if name in ("--help", "-h") else 2


if __name__ == "__main__":
    sys.exit(run(sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:]))
