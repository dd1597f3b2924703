"""What one rank does: engine, rows, loop, final weights. No ray here either."""

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from glm_dist.data.order import RowSchedule
from glm_dist.data.samples import SampleRowBuilder, build_row_builder
from glm_dist.data.shards import TokenDataset
from glm_dist.engine import Catalogue, Checkpoint, Engine, build_engine, load_checkpoint
from glm_dist.engine.catalogue import SCORE_KEY
from glm_dist.engine.storage import append_json_line, read_json_lines
from glm_dist.evaluate.dev import build_dev
from glm_dist.evaluate.heldout import Evaluator, build_heldout
from glm_dist.metrics.clock import Clock
from glm_dist.metrics.sinks import Sinks, build_sinks
from glm_dist.model.tuning import base_names, meta_model
from glm_dist.train.attempt import Attempt, write_ending
from glm_dist.train.boundary import Boundary, all_sum
from glm_dist.train.flops import StepFlops
from glm_dist.train.goodput import account
from glm_dist.train.heartbeat import Heartbeat
from glm_dist.train.initial import build_initial, save_result
from glm_dist.train.loop import Run, forward_of, train
from glm_dist.train.recorder import Recorder
from glm_dist.train.saver import Saver
from glm_dist.train.settings import PretrainSettings
from glm_dist.train.state import Ending, TrainState
from glm_dist.train.stragglers import Stragglers
from glm_dist.train.stream import RowStream
from glm_dist.train.supervise import Journal

logger = logging.getLogger(__name__)

MODEL_FOLDER = "model"
SIGNS_FOLDER = "signs"
EVENTS_FILE = "events.jsonl"
"""What rank 0 met with in the steps; of steps that were done again, what each time brought."""


@dataclass(frozen=True)
class Job:
    """What every rank is told."""

    settings: PretrainSettings
    run_folder: str
    dataset_folder: str
    fingerprints: dict[str, str]


def run_rank(job: Job, boundary: Boundary, attempt: Attempt) -> Ending:
    """Train this rank's part of an attempt; rank 0 writes sinks, final weights and figures."""
    clock = Clock("start-up", attempt.train_state.seconds)
    with Heartbeat(
        Path(job.run_folder) / SIGNS_FOLDER,
        boundary.rank,
        attempt.number,
        boundary.node,
        clock,
        job.settings.workers.hang_seconds,
    ):
        return _train(job, boundary, attempt, clock)


def _train(job: Job, boundary: Boundary, attempt: Attempt, clock: Clock) -> Ending:
    settings, run_folder = job.settings, Path(job.run_folder)
    earlier_wall = wall_seconds(run_folder)
    checkpoint = attempt.open_checkpoint()
    engine = build_engine(
        lambda: build_initial(settings, is_resumed=checkpoint is not None),
        settings.engine,
        base_names(meta_model(settings.model, settings.tuning), settings.tuning),
    )
    if checkpoint is not None:
        load_checkpoint(engine, checkpoint)
    state = attempt.train_state
    note = _notes(run_folder, attempt.number) if boundary.rank == 0 else _no_note
    sinks = _sinks(job, state, engine) if boundary.rank == 0 else None
    evaluator = build_evaluator(job, boundary)
    saver = Saver(run_folder, settings, attempt, checkpoint)

    def save(current: TrainState) -> None:
        kept = {
            "train": current.to_json(),
            "fingerprints": job.fingerprints,
            "config": settings.model_dump(mode="json"),
            SCORE_KEY: current.score,
        }
        saver.save(current.step, engine, kept)

    schedule = RowSchedule(
        state.next_row,
        tuple(state.skipped),
        settings.batch.global_batch_size,
        boundary.world_size,
    )
    run = Run(
        settings=settings,
        engine=engine,
        boundary=boundary,
        stream=RowStream(boundary, schedule, settings.batch.micro_batch_size),
        evaluator=evaluator,
        save=save,
        note=note,
        stragglers=Stragglers(engine, note),
        recorder=Recorder(
            engine.device,
            sinks,
            clock,
            StepFlops(settings.model, settings.tuning, engine),
            earlier_wall,
        ),
        clock=clock,
        state=state,
    )
    clock.enter("other")
    ending = train(run)
    saver.finish()
    if ending.kind == "finished":
        _finish(job, run)
    if sinks is not None:
        sinks.close()
    if boundary.rank == 0:
        write_ending(run_folder, attempt.number, ending)
    return ending


def wall_seconds(run_folder: Path) -> float:
    """Of all attempts up to now."""
    events = list(read_json_lines(run_folder / EVENTS_FILE))
    return account(Journal(run_folder).read(), events, time.time()).wall


def _notes(run_folder: Path, attempt: int) -> Callable[..., None]:
    def note(event: str, **values: Any) -> None:
        line = {"event": event, "time": time.time(), "attempt": attempt, **values}
        try:
            append_json_line(run_folder / EVENTS_FILE, line)
        except OSError as error:  # it is a record of the run, not worth its life
            logger.warning("an event could not be written down (%s): %s", error, line)

    return note


def _no_note(event: str, **values: Any) -> None:
    """Rank 0 has written it down."""


def _sinks(job: Job, state: TrainState, engine: Engine) -> Sinks:
    sinks = build_sinks(job.settings.sinks, Path(job.run_folder), job.settings.name)
    sinks.resume(state.step)
    sinks.config({**job.settings.model_dump(mode="json"), "engine_built": engine.describe()})
    return sinks


def build_evaluator(job: Job, boundary: Boundary) -> Evaluator | None:
    """This rank's share of what the run is measured by: a task's dev examples, or held-out text."""
    settings = job.settings
    if not settings.evaluation.num_rows:
        return None
    dataset = TokenDataset.open(job.dataset_folder)
    builder = build_row_builder(
        dataset,
        "validation",
        settings.rows,
        settings.evaluation.objective or settings.objective,
        settings.seed,
    )
    build = build_dev if isinstance(builder, SampleRowBuilder) else build_heldout
    return build(
        builder,
        settings.evaluation.num_rows,
        settings.batch.micro_batch_size,
        boundary.rank,
        boundary.world_size,
    )


def _finish(job: Job, run: Run) -> None:
    """Final figures of the model that counts, and its folder."""
    settings, engine, figures = job.settings, run.engine, dict(run.figures)
    forward = forward_of(engine)
    best = _restore_best(job, run)
    if run.evaluator is not None:
        if best is not None:
            figures = {**run.evaluator.measure(forward, all_sum), "best_step": best.step}
        figures |= run.evaluator.measure_more(forward, all_sum)
    weights = engine.full_weights()
    if weights is not None:
        folder = Path(job.run_folder) / MODEL_FOLDER
        dataset = TokenDataset.open(job.dataset_folder)
        save_result(folder, settings, weights, dataset, job.fingerprints)
        path = Path(job.run_folder) / "final.json"
        temporary = path.with_suffix(f".tmp-{os.getpid()}")
        temporary.write_text(json.dumps({**figures, "engine": engine.describe()}, indent=1))
        os.replace(temporary, path)
    if dist.is_initialized():
        dist.barrier()


def _restore_best(job: Job, run: Run) -> Checkpoint | None:
    """Go back to the checkpoint with the best evaluation, where that is asked for."""
    if not job.settings.evaluation.restores_best:
        return None
    best = Catalogue(job.settings.checkpoint_location or job.run_folder).best()
    if best is not None:
        load_checkpoint(run.engine, best)
    return best
