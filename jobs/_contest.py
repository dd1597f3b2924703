"""Contestants of the training benchmark, each measured by turns with the others in one run.

Every contestant trains the same model on the same rows; those that are not distributed do so in a
fresh process, as a worker is one.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from _apart import apart

from glm_dist.config import output_path
from glm_dist.train.settings import PretrainSettings

WARMUP_WINDOWS = 2
PROFILED_STEPS, PROFILED_OPERATIONS = 2, 12
AS_IT_COMES = "trainer"
"""The contestant whose process is left as it is."""


@dataclass(frozen=True)
class Turn:
    """What one measurement of one contestant found, warm-up apart."""

    speeds: list[float]
    """Tokens/s of each window of `log_every_steps`, padding not counted."""
    peak_memory_bytes: int
    """The most its process held, start-up included."""
    engine: dict[str, Any] = field(default_factory=dict)
    """What the engine says of itself; empty for all but the distributed run."""
    data_wait_share: float = 0.0
    """Share of the time in which the worker waited for rows; the others never do."""


Contestant = Callable[[PretrainSettings], Turn]


def contestants(settings: PretrainSettings, with_peers: bool) -> dict[str, Contestant]:
    """By name, in the order in which they are measured and shown."""
    found: dict[str, Contestant] = {"distributed": run_distributed, "bare loop": run_bare}
    if settings.engine.compile_layers:
        found["bare loop, not compiled"] = run_bare_eagerly
    if with_peers:
        found["transformers Trainer"] = run_trainer
        found["transformers Trainer, compiled"] = run_compiled_trainer
    return found


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
    """The bare loop with the options of the distributed run."""
    return _apart(_measure, "bare", settings)


def run_bare_eagerly(settings: PretrainSettings) -> Turn:
    """The bare loop without torch.compile."""
    engine = settings.engine.model_copy(update={"compile_layers": False})
    return run_bare(settings.model_copy(update={"engine": engine}))


def run_trainer(settings: PretrainSettings) -> Turn:
    """The Trainer of transformers as it comes."""
    return _apart(_measure, AS_IT_COMES, settings)


def run_compiled_trainer(settings: PretrainSettings) -> Turn:
    """The Trainer of transformers with torch.compile."""
    return _apart(_measure, "trainer compiled", settings)


def matmul_rate(settings: PretrainSettings) -> float:
    """FLOP/s of a large matrix product in the model's dtype with a worker's threads."""
    return _apart(_measure_matmul, "matmul", settings)


def profile(settings: PretrainSettings) -> dict[str, float]:
    """Share of the bare loop's time by operation, the largest first, not compiled."""
    engine = settings.engine.model_copy(update={"compile_layers": False})
    steps = settings.duration.model_copy(update={"num_steps": PROFILED_STEPS})
    changes = {"engine": engine, "duration": steps}
    return _apart(_measure_profile, "profile", settings.model_copy(update=changes))


def rows_of(settings: PretrainSettings) -> list[list[Any]]:
    """Micro-batches of each step, as all but the distributed run read them."""
    from glm_dist.data.shards import TokenDataset
    from glm_dist.train.probe import packed_steps

    dataset = TokenDataset.open(output_path(settings.dataset))
    rows_per_step = settings.batch.global_batch_size
    return list(packed_steps(settings, dataset, settings.num_steps, rows_per_step))


def fresh_folder() -> Path:
    """A run folder that nothing has been in."""
    number = 0
    while (folder := output_path(f"benchmarks/train-{number:04d}")).exists():
        number += 1
    return folder


def _apart(function: Callable[..., Any], kind: str, settings: PretrainSettings) -> Any:
    """In a process that has a worker's threads, and keeps its memory as a worker does."""
    from glm_dist.engine.device import kept_memory

    return apart(
        function,
        kind,
        settings,
        num_threads=max(1, int(settings.workers.cpus_per_worker)),
        environment={} if kind == AS_IT_COMES else kept_memory(),
    )


def _measure(kind: str, settings: PretrainSettings) -> Turn:
    import torch

    from glm_dist.metrics.memory import peak_bytes

    steps = rows_of(settings)
    if kind == "bare":
        seconds, device = _measure_bare(settings, steps)
    else:
        from _trainer_peer import trainer_loop

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        folder = str(output_path("benchmarks/trainer"))
        seconds = trainer_loop(settings, steps, folder, compiled="compiled" in kind)
    tokens = [sum(int((rows["segment_ids"] > 0).sum()) for rows in step) for step in steps]
    size = settings.log_every_steps
    speeds = [
        sum(tokens[start : start + size]) / sum(seconds[start : start + size])
        for start in range(WARMUP_WINDOWS * size, len(steps) - size + 1, size)
    ]
    return Turn(speeds, peak_bytes(device))


def _measure_bare(settings: PretrainSettings, steps: list[list[Any]]) -> tuple[list[float], Any]:
    import torch
    from _bare_loop import bare_loop

    from glm_dist.engine.device import choose_dtype
    from glm_dist.model import build_model, compile_layers

    uses_gpu = torch.cuda.is_available() and settings.workers.use_gpu is not False
    device = torch.device("cuda" if uses_gpu else "cpu")
    model = build_model(settings.model).to(device, choose_dtype(settings.engine, device))
    if settings.engine.compile_layers:
        compile_layers(model)
    return bare_loop(model, settings, steps), device


def _measure_profile(_: str, settings: PretrainSettings) -> dict[str, float]:
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    steps = rows_of(settings)
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with recorded(activities=activities) as record:
        _measure_bare(settings, steps)
    seconds = {
        event.key: event.self_device_time_total or event.self_cpu_time_total
        for event in record.key_averages()
    }
    whole = sum(seconds.values())
    ordered = sorted(seconds, key=lambda name: seconds[name], reverse=True)
    return {name: seconds[name] / whole for name in ordered[:PROFILED_OPERATIONS]}


def _measure_matmul(_: str, settings: PretrainSettings) -> float:
    import torch

    from glm_dist.engine.device import choose_device, choose_dtype

    device = choose_device()
    side, dtype = 2048 if device.type == "cpu" else 8192, choose_dtype(settings.engine, device)
    left, right = torch.randn(2, side, side, device=device, dtype=dtype)
    seconds = []
    for _turn in range(20):
        start = time.perf_counter()
        float((left @ right)[0, 0])
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / median(seconds[5:])
