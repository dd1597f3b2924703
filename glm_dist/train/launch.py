"""Pretraining under Ray Train: checks before anything expensive, attempts, and the driver's view.

The only file of the package that knows ray. Ray Train restarts the workers after a failure; which
checkpoint they start from is our own decision (`attempt.py`), taken where the world size is known.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from glm_dist.config import output_path
from glm_dist.data.order import RowSchedule
from glm_dist.data.pipeline import RowDataConfig, RowPlan, RowSource, build_order
from glm_dist.data.rows import Rows
from glm_dist.data.shards import TokenDataset
from glm_dist.errors import ConfigError, GlmDistError, LaunchError
from glm_dist.train.attempt import (
    Attempt,
    claim_run_folder,
    decide_attempt,
    read_attempts,
)
from glm_dist.train.settings import PretrainSettings
from glm_dist.train.worker import Job, run_rank

logger = logging.getLogger(__name__)

ROW_TASK_CPUS = 1
COLLECTIVE_TIMEOUT_SECONDS = 1800
PREFETCH_MICRO_BATCHES = 4


@dataclass(frozen=True)
class Launched:
    """What a launch left behind."""

    run_folder: Path
    attempts: list[Attempt]


def run_folder_of(settings: PretrainSettings) -> Path:
    """The run's folder, absolute."""
    return output_path(settings.run_folder or f"runs/{settings.name}")


def resolve(settings: PretrainSettings, dataset: TokenDataset) -> PretrainSettings:
    """The settings with what the dataset decides, checked against it.

    Raises:
        ConfigError: when rows, model and data do not fit.
    """
    model = settings.model.with_vocab_size(dataset.tokenizer.vocab_size)
    try:
        model.check_sequence_length(settings.rows.sequence_length)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return settings.model_copy(update={"model": model})


def launch(settings: PretrainSettings) -> Launched:
    """Train to the end, through worker failures; a run folder that holds checkpoints goes on.

    Raises:
        GlmDistError: for what the user can mend; before any worker starts where possible.
    """
    dataset = TokenDataset.open(output_path(settings.dataset))
    settings = resolve(settings, dataset)
    run_folder = run_folder_of(settings)
    claim_run_folder(run_folder, settings)
    check_resources(settings)
    check_visibility(run_folder, dataset.folder)
    dataset.verify()

    source = RowSource(
        str(dataset.folder),
        dataset.fingerprint,
        str(run_folder / "row_tables"),
        settings.rows,
        settings.objective,
        settings.seed,
    )
    order = build_order(source, settings.num_steps * settings.batch.global_batch_size)
    fingerprints = {
        "dataset": dataset.fingerprint,
        "tokenizer": dataset.tokenizer.sha256,
        "row order": order.sha256,
    }
    job = Job(settings, str(run_folder), str(dataset.folder), fingerprints)

    def plan_attempt(world_size: int) -> RowPlan:
        attempt = decide_attempt(run_folder, settings, fingerprints, world_size)
        state = attempt.train_state
        schedule = RowSchedule(
            state.next_row, tuple(state.skipped), settings.batch.global_batch_size, world_size
        )
        left = max(1, settings.num_steps - state.step)
        return RowPlan(source, schedule, len(order.tables), left)

    _fit(job, plan_attempt)
    return Launched(run_folder, read_attempts(run_folder))


def check_resources(settings: PretrainSettings) -> None:
    """Refuse what the cluster cannot run, with the arithmetic.

    Raises:
        LaunchError: when workers and row tasks do not fit.
    """
    workers, available = settings.workers, ray.cluster_resources()
    cpus = available.get("CPU", 0)
    needed = workers.num_workers * workers.cpus_per_worker + ROW_TASK_CPUS
    if needed > cpus:
        raise LaunchError(
            f"{workers.num_workers} workers x {workers.cpus_per_worker:g} CPUs + {ROW_TASK_CPUS} "
            f"for the row tasks are {needed:g} CPUs, and the cluster has {cpus:g}; add nodes, or "
            "lower workers.num_workers or workers.cpus_per_worker"
        )
    gpus = available.get("GPU", 0)
    if workers.use_gpu and gpus < workers.num_workers:
        raise LaunchError(
            f"workers.num_workers {workers.num_workers} with a GPU each, and the cluster has "
            f"{gpus:g}; lower num_workers or set workers.use_gpu=false"
        )


def check_visibility(run_folder: Path, dataset_folder: Path) -> None:
    """Refuse folders that a node of the cluster does not see, by the node's name.

    Raises:
        LaunchError: naming each host and folder.
    """
    files = [str(run_folder / "config.json"), str(dataset_folder / "manifest.json")]
    probe = ray.remote(num_cpus=0)(_missing_files)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = [
        probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(files)
        for node in nodes
    ]
    problems = [
        f"host {node['NodeManagerHostname']} does not see {Path(missing).parent}"
        for node, missing_files in zip(nodes, ray.get(answers), strict=True)
        for missing in missing_files
    ]
    if problems:
        raise LaunchError(
            "\n".join(problems)
            + "\nput GLM_DIST_HOME on storage that every node mounts at the same path"
        )


def _missing_files(paths: list[str]) -> list[str]:
    return [path for path in paths if not Path(path).exists()]


def _fit(job: Job, plan_attempt: Callable[[int], RowPlan]) -> None:
    workers = job.settings.workers
    gpus = ray.cluster_resources().get("GPU", 0)
    use_gpu = gpus >= workers.num_workers if workers.use_gpu is None else workers.use_gpu
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={
                "CPU": workers.cpus_per_worker,
                **({"GPU": 1} if use_gpu else {}),
            },
        ),
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo",
            timeout_s=COLLECTIVE_TIMEOUT_SECONDS,
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # the names of Train V1 shadow V2's
            name=f"launch-{time.time_ns()}",
            storage_path=str(Path(job.run_folder) / "ray_train"),
            failure_config=FailureConfig(max_failures=workers.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
        datasets={"train": _no_dataset},  # type: ignore[dict-item]
        dataset_config=RowDataConfig(plan_attempt),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _as_ours(error) from error


def _no_dataset() -> None:
    """A stand-in: the dataset is built in `RowDataConfig.configure`, which knows the world size."""


def _as_ours(error: BaseException) -> GlmDistError:
    """The user's error inside Ray's, or the failure of a rank as one of ours."""
    seen: list[BaseException] = [error]
    causes = list(getattr(error, "worker_failures", {}).values())
    while causes:
        cause = causes.pop()
        seen.append(cause)
        causes += [c for c in (cause.__cause__, getattr(cause, "cause", None)) if c is not None]
    for found in seen:
        if isinstance(found, GlmDistError):
            return found
    last = str(seen[-1]).strip().splitlines()
    return LaunchError(f"training failed: {last[-1] if last else type(seen[-1]).__name__}")


class RayBoundary:
    """The loop's boundary under Ray Train."""

    def __init__(self, job: Job) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self._micro_batch_size = job.settings.batch.micro_batch_size
        self._stop_file = Path(job.run_folder) / "STOP"
        self._shard = ray.train.get_dataset_shard("train")

    def batches(self) -> Iterator[Rows]:
        """This rank's micro-batches, built ahead by row tasks."""
        return iter(
            self._shard.iter_batches(
                batch_size=self._micro_batch_size,
                batch_format="numpy",
                prefetch_batches=PREFETCH_MICRO_BATCHES,
            )
        )

    def report(self, metrics: dict[str, Any]) -> None:
        """Metrics only: our catalogue alone knows checkpoints."""
        ray.train.report(metrics)

    def stop_requested(self) -> bool:
        """Whether somebody put a file named STOP into the run folder."""
        return self.rank == 0 and self._stop_file.exists()


def _train_worker(config: dict[str, Any]) -> None:
    job: Job = config["job"]
    torch.set_num_threads(max(1, math.floor(job.settings.workers.cpus_per_worker)))
    boundary = RayBoundary(job)
    attempt = read_attempts(Path(job.run_folder))[-1]
    state = run_rank(job, boundary, attempt)
    boundary.report({"step": state.step})


class Follower:
    """Shows a run's log lines while it trains, by reading the file that rank 0 writes."""

    def __init__(self, path: Path, show: Callable[[str], None], poll_seconds: float = 0.5) -> None:
        self._path, self._show, self._poll_seconds = path, show, poll_seconds
        self._position = path.stat().st_size if path.exists() else 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        self._show_new()

    def _follow(self) -> None:
        while not self._ended.wait(self._poll_seconds):
            self._show_new()

    def _show_new(self) -> None:
        if not self._path.exists():
            return
        size = self._path.stat().st_size
        self._position = min(self._position, size)  # a resumed run cuts redone lines off
        with open(self._path, "rb") as file:
            file.seek(self._position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.decode().splitlines():
            self._show(line)
