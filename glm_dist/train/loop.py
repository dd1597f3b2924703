"""The training loop: a list of collaborators, each deciding by the step whether it is its turn.

No ray and no files here; the same loop runs under Ray Train, in tests and in the benchmark.
"""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from glm_dist.data.rows import Rows
from glm_dist.engine import Engine
from glm_dist.errors import GlmDistError, StepFailedError
from glm_dist.evaluate.heldout import HeldOut
from glm_dist.metrics.clock import Clock
from glm_dist.objective import Mode
from glm_dist.train.boundary import Boundary, all_sum
from glm_dist.train.recorder import Recorder
from glm_dist.train.schedule import learning_rate
from glm_dist.train.settings import PretrainSettings
from glm_dist.train.state import TrainState
from glm_dist.train.stream import RowStream, StepRows, to_batch

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """Everything the loop works with."""

    settings: PretrainSettings
    engine: Engine
    boundary: Boundary
    stream: RowStream
    heldout: HeldOut | None
    save: Callable[[TrainState], None]
    recorder: Recorder
    clock: Clock
    state: TrainState
    heldout_figures: dict[str, float] = field(default_factory=dict)
    """What the last evaluation gave."""


def train(run: Run) -> TrainState:
    """Train from the run's state to its last step, or until a stop is asked for."""
    state, settings = run.state, run.settings
    first_step, stopping = state.step, False
    while True:
        ending = stopping or state.step >= settings.num_steps
        if is_evaluation_due(settings, state.step) or (ending and not stopping):
            evaluate(run)
        if state.step > first_step and (ending or is_checkpoint_due(settings, state.step)):
            checkpoint(run)
        if ending:
            return state

        rows = run.stream.next_step()
        run.clock.lap("data")
        with naming_rows(state.step, rows):
            totals = count(rows, run.boundary)
            stopping = totals.stop
            train_step(run, rows, totals)
        if state.step % settings.log_every_steps == 0 or state.step == settings.num_steps:
            run.recorder.log(state)


def train_step(run: Run, rows: StepRows, totals: "StepTotals") -> None:
    """One optimizer step, or one that is left out because its gradient is not finite."""
    state, settings = run.state, run.settings
    seed_dropout(settings.seed, state.step, run.boundary.rank)
    for number, (batch, modes) in enumerate(rows.batches(run.engine.device), start=1):
        is_last = number == len(rows.micro_batches)
        output = run.engine.backward(batch, 1 / max(1.0, totals.loss_tokens), is_last)
        run.recorder.add_losses(output.token_losses, modes)
    health = run.engine.prepare()
    rate = learning_rate(settings.schedule, state.step, settings.num_steps)
    if bool(health.is_finite):
        run.engine.apply(rate)
    else:
        discard(run, rows)
    state.step += 1
    state.next_row = run.stream.next_row
    state.tokens += totals.tokens
    state.loss_tokens += int(totals.loss_tokens)
    run.clock.lap("compute")
    run.recorder.add_step(totals, rate, health.grad_norm)


@contextlib.contextmanager
def naming_rows(step: int, rows: StepRows) -> Iterator[None]:
    """Give an error of a step the step's rows, so that the same one is known when it comes again.

    Raises:
        StepFailedError: in place of whatever was raised that is no error of ours.
    """
    try:
        yield
    except GlmDistError:
        raise
    except Exception as error:
        raise StepFailedError(
            f"step {step}, rows {rows.row_ids.tolist()}: {type(error).__name__}: {error}"
        ) from error


@dataclass(frozen=True)
class StepTotals:
    """What a step holds over all ranks."""

    stop: bool
    tokens: int
    visible_pairs: int
    mode_counts: np.ndarray

    @property
    def loss_tokens(self) -> float:
        """Loss-bearing tokens of the global batch: what its loss is divided by."""
        return float(self.mode_counts.sum())


def count(rows: StepRows, boundary: Boundary) -> StepTotals:
    """One all-reduce of host numbers; the stop flag rides on it, so that all ranks agree."""
    own = [float(boundary.stop_requested()), float(rows.num_tokens), float(rows.num_visible_pairs)]
    totals = all_sum(np.concatenate((own, rows.mode_counts)))
    return StepTotals(totals[0] > 0, int(totals[1]), int(totals[2]), totals[3 : 3 + len(Mode)])


def is_evaluation_due(settings: PretrainSettings, step: int) -> bool:
    """Whether the held-out loss is measured before step `step`."""
    every = settings.evaluation.every_steps
    return every > 0 and step % every == 0


def is_checkpoint_due(settings: PretrainSettings, step: int) -> bool:
    """Whether a checkpoint is written before step `step`."""
    return step % settings.checkpoints.every_steps == 0


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Key the step's dropout by (seed, step, rank): a resumed step draws what it would have."""
    digest = hashlib.blake2b(f"{seed},{step},{rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def evaluate(run: Run) -> None:
    """Measure the held-out loss and record it."""
    if run.heldout is None:
        return
    run.clock.lap("other")
    run.heldout_figures = run.heldout.measure(token_losses(run.engine), all_sum)
    run.clock.lap("evaluation")
    run.recorder.log_evaluation(run.state.step, run.heldout_figures)


def token_losses(engine: Engine) -> Callable[[Rows], np.ndarray]:
    """The engine's per-token losses as a function of rows."""

    def measure(rows: Rows) -> np.ndarray:
        return engine.evaluate(to_batch(rows, engine.device)).token_losses.float().cpu().numpy()

    return measure


def checkpoint(run: Run) -> None:
    """Save, then tell the launcher; every rank takes part."""
    run.clock.lap("other")
    run.state.seconds = run.clock.totals()
    run.save(run.state)
    run.clock.lap("checkpoint")
    run.boundary.report({"step": run.state.step})


def discard(run: Run, rows: StepRows) -> None:
    """Leave out a step whose gradient is not finite, and say which rows it held."""
    run.engine.discard()
    run.state.discarded_steps += 1
    logger.warning(
        "step %d: the gradient is not finite; all ranks leave the step out (rows %s of rank %d)",
        run.state.step,
        rows.row_ids.tolist(),
        run.boundary.rank,
    )
