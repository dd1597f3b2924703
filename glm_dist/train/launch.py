"""Pretraining under Ray Train: checks before anything expensive, and the launch of each attempt.

Beside `cluster.py` the only file of the package that knows ray. Whether, with how many workers and
from where an attempt follows another is decided in `supervise.py`.
"""

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.data import DataIterator
from ray.train._internal.utils import get_address_and_port
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.util.placement_group import PlacementGroup

from glm_dist.config import output_path
from glm_dist.data.order import Range, RowSchedule
from glm_dist.data.pipeline import RowPlan, RowSource, build_order, end_streams
from glm_dist.data.rows import Rows
from glm_dist.data.shards import TokenDataset
from glm_dist.engine.device import kept_memory
from glm_dist.engine.object_store import open_store
from glm_dist.engine.store import OWNER_NAME
from glm_dist.errors import ConfigError, GlmDistError, StepFailedError
from glm_dist.model.tuning import meta_model
from glm_dist.train.attempt import Attempt, claim_run_folder, read_attempts
from glm_dist.train.cluster import (
    ANSWER_SECONDS,
    TRAIN_ENVIRONMENT,
    answering_nodes,
    check_visibility,
    on_node,
    room_for_workers,
    staying_nodes,
)
from glm_dist.train.heartbeat import HangDetector, Sign, write_stacks
from glm_dist.train.initial import base_fingerprint, check_initial
from glm_dist.train.settings import PretrainSettings
from glm_dist.train.state import Ending
from glm_dist.train.supervise import (
    STOP_NAME,
    Failure,
    ask_to_stop,
    choose_world_size,
    keep_claim,
    supervise,
)
from glm_dist.train.trainer import RankTrainer, start_controllers
from glm_dist.train.worker import SIGNS_FOLDER, Job, run_rank

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=PretrainSettings)

COLLECTIVE_TIMEOUT_SECONDS = 1800
PREFETCH_MICRO_BATCHES = 4
WATCH_SECONDS = 2.0
STACK_SECONDS = 2.0


@dataclass(frozen=True)
class Launched:
    """What a launch left behind."""

    run_folder: Path
    attempts: list[Attempt]
    ending: Ending


def resolve(settings: S, dataset: TokenDataset) -> S:
    """The settings with what the dataset decides, checked against it.

    Raises:
        ConfigError: when rows, model and data do not fit, or nothing would be trained.
    """
    model = settings.model.with_vocab_size(dataset.tokenizer.vocab_size)
    try:
        model.check_sequence_length(settings.rows.sequence_length)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    unknown = sorted(set(settings.rows.source_shares) - set(dataset.sources))
    if unknown:
        raise ConfigError(
            f"rows.source_shares: {', '.join(unknown)} is no source of {dataset.folder}; it has "
            f"{', '.join(dataset.sources)}"
        )
    meta_model(model, settings.tuning)
    for warning in settings.tuning.warnings():
        logger.warning(warning)
    return settings.model_copy(update={"model": model})


def launch(settings: PretrainSettings) -> Launched:
    """Train to the end, through worker failures; a run folder that holds checkpoints goes on.

    Where another driver could be given the same run, call it inside `holding`.

    Raises:
        GlmDistError: for what the user can mend; before any worker starts where possible.
    """
    dataset = TokenDataset.open(output_path(settings.dataset))
    settings = resolve(settings, dataset)
    check_initial(settings, dataset.tokenizer)
    run_folder = settings.run_path
    claim_run_folder(run_folder, settings)
    choose_world_size(settings, room_for_workers(settings.workers, staying_nodes()))
    check_visibility(files_that_tell(run_folder, dataset.folder, settings.checkpoint_location))
    dataset.verify()

    source = RowSource(
        str(dataset.folder),
        dataset.fingerprint,
        str(run_folder / "row_tables"),
        settings.rows,
        settings.objective,
        settings.seed,
    )
    order = build_order(source, rows_needed(settings, []))
    fingerprints = {
        "dataset": dataset.fingerprint,
        "tokenizer": dataset.tokenizer.sha256,
        "row order": order.sha256,
        **base_fingerprint(settings),
    }
    job = Job(settings, str(run_folder), str(dataset.folder), fingerprints)

    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _Watch(run_folder, settings) as watch:
        workers = RayWorkers(job, source, watch)
        ending = supervise(run_folder, settings, fingerprints, workers)
    return Launched(run_folder, read_attempts(run_folder), ending)


def files_that_tell(
    run_folder: Path, dataset_folder: Path, checkpoint_location: str | None
) -> list[str]:
    """A file of each folder that every node must see."""
    files = [str(run_folder / "config.json"), str(dataset_folder / "manifest.json")]
    if checkpoint_location is not None:
        files.append(str(open_store(checkpoint_location).folder / OWNER_NAME))
    return files


def rows_needed(settings: PretrainSettings, skipped: Sequence[Range]) -> int:
    """Rows of the whole run, those that it leaves out included."""
    trained = settings.num_steps * settings.batch.global_batch_size
    return trained + sum(stop - start for start, stop in skipped)


class RayWorkers:
    """The ranks of a run under Ray Train, one launch an attempt.

    Ray restarts nothing by itself: a failed launch comes back here, where the next decision is.
    """

    def __init__(self, job: Job, source: RowSource, watch: "_Watch") -> None:
        self._job, self._source, self._watch = job, source, watch
        self._controllers = start_controllers()

    def room(self) -> int:
        """Workers the cluster has room for."""
        return room_for_workers(self._job.settings.workers, answering_nodes())

    def run(self, attempt: Attempt) -> Failure | None:
        """Train until all ranks have returned or one has failed."""
        use_gpu = self._use_gpu(attempt.world_size)
        streams = self._plan(attempt).streams()
        trainer = RankTrainer(
            partial(_train_worker, self._job, streams, use_gpu),
            self._scaling(attempt.world_size, use_gpu),
            RunConfig(
                name=f"launch-{time.time_ns()}",
                storage_path=str(Path(self._job.run_folder) / "ray_train"),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
                worker_runtime_env={"env_vars": {} if use_gpu else kept_memory()},
            ),
            self._controllers,
        )
        self._watch.begin(attempt)
        failure = None
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            failure = as_failure(error)
        except ray.exceptions.RayError as error:
            failure = Failure(f"the Ray Train controller is gone ({type(error).__name__})")
            self._controllers = start_controllers()
        finally:
            hang = self._watch.end()
            end_streams(streams)
            _free_reservations()
        return failure and (hang or failure)

    def _plan(self, attempt: Attempt) -> RowPlan:
        settings, state = self._job.settings, attempt.train_state
        schedule = RowSchedule(
            state.next_row,
            tuple(state.skipped),
            settings.batch.global_batch_size,
            attempt.world_size,
        )
        order = build_order(self._source, rows_needed(settings, state.skipped))
        left = max(1, settings.num_steps - state.step)
        return RowPlan(self._source, schedule, len(order.tables), left)

    def _use_gpu(self, world_size: int) -> bool:
        chosen = self._job.settings.workers.use_gpu
        has_gpus = ray.cluster_resources().get("GPU", 0) >= world_size
        return has_gpus if chosen is None else chosen

    def _scaling(self, world_size: int, use_gpu: bool) -> ScalingConfig:
        cpus = {"CPU": self._job.settings.workers.cpus_per_worker}
        return ScalingConfig(
            num_workers=world_size,
            use_gpu=use_gpu,
            resources_per_worker={**cpus, **({"GPU": 1} if use_gpu else {})},
        )


class _Watch:
    """Looks at cluster and ranks while they train, and asks them to stop where that serves the run.

    A node that joins lets an elastic run grow; before one leaves, any run saves first. A group that
    hangs is ended.
    """

    def __init__(self, run_folder: Path, settings: PretrainSettings) -> None:
        self._run_folder, self._settings = run_folder, settings
        self._signs = run_folder / SIGNS_FOLDER
        self._world_size: int | None = None
        self._detector: HangDetector | None = None
        self._hang: Failure | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def begin(self, attempt: Attempt) -> None:
        """An attempt's ranks are about to start."""
        limit = self._settings.workers.hang_seconds
        self._hang = None
        self._detector = HangDetector(self._signs, attempt.number, limit)
        self._world_size = attempt.world_size

    def end(self) -> Failure | None:
        """They have ended; how, where it was this watch that ended them."""
        self._world_size = self._detector = None
        return self._hang

    def _look(self) -> None:
        seen_before = None
        while not self._ended.wait(WATCH_SECONDS):
            keep_claim(self._run_folder)
            self._end_hang()
            better = self._better_world_size()
            if better is not None and better == seen_before:
                ask_to_stop(self._run_folder, "resize")
            seen_before = better

    def _better_world_size(self) -> int | None:
        """Another number of workers the run should go on with, None while it is right."""
        if self._world_size is None:
            return None
        try:
            room = room_for_workers(self._settings.workers, staying_nodes())
        except ray.exceptions.RayError:
            return None  # the launch itself will fail and say more
        fitting = [size for size in self._settings.world_sizes if size <= room]
        best = fitting[-1] if fitting else 0
        return best if best != self._world_size else None

    def _end_hang(self) -> None:
        """Name who hangs, write the stacks down, and end all ranks, so that the group restarts."""
        detector = self._detector
        hang = detector.look(time.monotonic()) if detector else None
        if hang is None:
            return
        report = write_stacks(self._signs, hang, _send, lambda: time.sleep(STACK_SECONDS))
        first = hang.culprits[0]
        text = f"{hang}; the stacks of all ranks are in {report}"
        self._hang = Failure(text, signature=f"hang at {first.progress} in {first.part}")
        self._detector = None
        for sign in hang.signs:
            _send(sign, signal.SIGKILL)


def _send(sign: Sign, number: signal.Signals) -> None:
    """Bring a signal to a rank's process, wherever it runs; a machine that is gone hears none."""
    kill = on_node(sign.node, ray.remote(num_cpus=0, max_retries=0)(_kill))
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(kill.remote(sign.pid, number), timeout=ANSWER_SECONDS)


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _free_reservations() -> None:
    """Give back what a controller that died had reserved for its workers; this job's alone."""
    own_job = ray.get_runtime_context().get_job_id()
    for name, group in ray.util.placement_group_table().items():
        if name.endswith(own_job) and group["state"] != "REMOVED":
            ray.util.remove_placement_group(
                PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name)))
            )


def as_failure(error: BaseException) -> Failure:
    """What is inside Ray's error: a mistake the user can mend, a rank's own error, or a death."""
    found = sorted(_inside(error), key=_is_collateral)
    for inner in found:
        if isinstance(inner, StepFailedError):
            if _is_collateral(inner):
                return Failure("a rank is gone, and the others lost their connection to it")
            return Failure(str(inner), signature=str(inner))
        if isinstance(inner, GlmDistError):
            return Failure(str(inner), error=inner)
        if isinstance(inner, ray.exceptions.OutOfMemoryError):
            return Failure(
                "Ray ended a rank because its machine was about to run out of memory; lower "
                "batch.micro_batch_size, or give each machine fewer workers"
            )
        if isinstance(inner, ray.exceptions.RayActorError):
            return Failure(
                "a rank's process is gone: killed from outside, by the system for lack of memory, "
                "or crashed"
            )
    last = str(found[-1]).strip().splitlines()
    return Failure(last[-1] if last else type(found[-1]).__name__)


def _inside(error: BaseException) -> list[BaseException]:
    seen: list[BaseException] = [error]
    causes = list(getattr(error, "worker_failures", {}).values())
    while causes:
        cause = causes.pop()
        seen.append(cause)
        names = ("__cause__", "cause", "health_check_failure")
        causes += [inner for name in names if (inner := getattr(cause, name, None)) is not None]
    return seen


def _is_collateral(error: BaseException) -> bool:
    """Whether a rank only noticed that another one had gone."""
    text = str(error).lower()
    return any(word in text for word in ("connection", "gloo", "nccl", "peer"))


class RayBoundary:
    """The loop's boundary under Ray Train."""

    def __init__(self, job: Job, streams: Sequence[DataIterator]) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.node = ray.get_runtime_context().get_node_id()
        self._stop_file = Path(job.run_folder) / STOP_NAME
        self._batches = iter(
            streams[self.rank].iter_batches(
                batch_size=job.settings.batch.micro_batch_size,
                batch_format="numpy",
                prefetch_batches=PREFETCH_MICRO_BATCHES,
            )
        )
        self._first = ThreadPoolExecutor(1).submit(lambda: list(islice(self._batches, 1)))

    def batches(self) -> Iterator[Rows]:
        """This rank's micro-batches, built ahead by row tasks; the first ones from now on."""
        yield from self._first.result()
        yield from self._batches

    def report(self, metrics: dict[str, Any]) -> None:
        """Metrics only: our catalogue alone knows checkpoints."""
        ray.train.report(metrics)

    def stop_requested(self) -> bool:
        """Whether a file named STOP lies in the run folder, whoever put it there."""
        return self.rank == 0 and self._stop_file.exists()


def _train_worker(job: Job, streams: Sequence[DataIterator], use_gpu: bool) -> None:
    torch.set_num_threads(max(1, math.floor(job.settings.workers.cpus_per_worker)))
    boundary = RayBoundary(job, streams)
    _join_ranks(boundary.rank, boundary.world_size, use_gpu)
    attempt = read_attempts(Path(job.run_folder))[-1]
    ending = run_rank(job, boundary, attempt)
    boundary.report({"step": ending.step})
    dist.destroy_process_group()


def _join_ranks(rank: int, world_size: int, use_gpu: bool) -> None:
    """Make torch's process group, on the device that Ray gave this rank."""
    if use_gpu:
        torch.cuda.set_device(ray.train.torch.get_device())
    host, port = broadcast_from_rank_zero(get_address_and_port() if rank == 0 else None)
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if use_gpu else "gloo",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_SECONDS),
    )
