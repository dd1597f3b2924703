"""The training loop: a list of collaborators, each deciding by the step whether it is its turn.

No ray and no files here; the same loop runs under Ray Train, in tests and in the benchmark.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from glm_dist.data.order import nth_rows
from glm_dist.data.rows import Rows
from glm_dist.engine import Engine, StepHealth
from glm_dist.errors import GlmDistError, StepFailedError
from glm_dist.evaluate.heldout import Evaluator, Forward, TokenOutputs
from glm_dist.metrics.clock import Clock
from glm_dist.train.boundary import Boundary, all_sum
from glm_dist.train.guard import Figures, Guard, Verdict
from glm_dist.train.recorder import Recorder
from glm_dist.train.schedule import learning_rate
from glm_dist.train.self_check import check_ranks, is_check_due
from glm_dist.train.settings import PretrainSettings
from glm_dist.train.state import Ending, Rewind, Scores, TrainState
from glm_dist.train.stragglers import Stragglers
from glm_dist.train.stream import RowStream, StepRows, to_batch
from glm_dist.train.totals import StepTotals, count


@dataclass
class Run:
    """Everything the loop works with."""

    settings: PretrainSettings
    engine: Engine
    boundary: Boundary
    stream: RowStream
    evaluator: Evaluator | None
    save: Callable[[TrainState], None]
    note: Callable[..., None]
    """Writes down an event, by its name and values; on rank 0."""
    stragglers: Stragglers
    recorder: Recorder
    clock: Clock
    state: TrainState
    figures: dict[str, float] = field(default_factory=dict)
    """What the last evaluation gave."""


def train(run: Run) -> Ending:
    """Train from the run's state to its last step, until a stop is asked for, or to a rewind."""
    state, settings = run.state, run.settings
    first_step, stopping = state.step, False
    while True:
        is_done = state.step >= settings.num_steps
        if is_evaluation_due(settings, state.step) or (is_done and not stopping):
            evaluate(run)
        is_done = is_done or has_converged(settings.evaluation.patience, state.scores)
        ending = stopping or is_done
        is_due = is_checkpoint_due(settings, state.step) and not state.guard.num_bad
        if state.step > first_step and (ending or is_due):
            checkpoint(run)
        if ending:
            return Ending(state.step, "finished" if is_done else "stopped")

        run.clock.enter("data")
        rows = run.stream.next_step()
        run.clock.enter("compute")
        if is_check_due(settings.guard.check_every_steps, state.step):
            check_ranks(run.engine, rows, state.step)
        with naming_rows(state.step, rows):
            totals = count(rows, run.boundary)
            stopping = totals.stop
            verdict = train_step(run, rows, totals)
        if verdict is Verdict.REWIND:
            return Ending(state.step, "rewind", rewind_of(run))
        if state.step % settings.log_every_steps == 0 or state.step == settings.num_steps:
            run.recorder.log(state)
            run.stragglers.look(state.step)


def train_step(run: Run, rows: StepRows, totals: StepTotals) -> Verdict:
    """One optimizer step, or one that is left out because its numbers are in trouble."""
    state, settings = run.state, run.settings
    seed_dropout(settings.seed, state.step, run.boundary.rank)
    for number, (batch, modes) in enumerate(rows.batches(run.engine.device), start=1):
        is_last = number == len(rows.micro_batches)
        output = run.engine.backward(batch, 1 / max(1.0, totals.loss_tokens), is_last)
        run.recorder.add_losses(output.token_losses, modes)
        run.clock.tick()
    health = run.engine.prepare()
    rate = learning_rate(settings.schedule, state.step, settings.num_steps)
    verdict = judge(run, totals, health)
    if verdict is Verdict.APPLY:
        run.engine.apply(rate)
    else:
        run.engine.discard()
        state.discarded_steps += 1
    state.step += 1
    state.next_row = run.stream.next_row
    state.tokens += totals.tokens
    state.loss_tokens += int(totals.loss_tokens)
    run.recorder.add_step(totals, rate, health, verdict is Verdict.APPLY)
    return verdict


def judge(run: Run, totals: StepTotals, health: StepHealth) -> Verdict:
    """Whether the step is applied, by its loss over all ranks and its gradient norm."""
    state, guard = run.state, Guard(run.settings.guard, run.state.guard)
    loss_sum = float(all_sum(np.array([run.recorder.step_loss()]))[0])
    loss = loss_sum / max(1.0, totals.loss_tokens)
    figures = Figures(loss, float(health.grad_norm), health.loss_scale)
    reason = guard.reason(figures)
    if reason is not None:
        rows = run.stream.last_rows.tolist()
        run.note("discarded", step=state.step, reason=reason, rows=rows)
    verdict = guard.judge(state.step, state.next_row, figures)
    if verdict is Verdict.REWIND:
        cause = "loss scale collapsed" if figures.has_overflowed else "loss or gradient spiked"
        run.note("alarm", step=state.step, cause=cause)
    return verdict


def rewind_of(run: Run) -> Rewind:
    """Back to before the streak of bad steps, and past the rows that follow its beginning."""
    settings, first_bad = run.settings, run.state.guard.first_bad
    assert first_bad is not None, "a streak has a beginning"
    step, first_row = first_bad
    num_rows = settings.guard.skip_steps * settings.batch.global_batch_size
    after = int(nth_rows(np.array([num_rows]), first_row, run.state.skipped)[0])
    return Rewind(step, (first_row, after))


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


def is_evaluation_due(settings: PretrainSettings, step: int) -> bool:
    """Whether the held-out loss is measured before step `step`."""
    every = settings.evaluation.every_steps
    return every > 0 and step % every == 0


def has_converged(patience: int, scores: Scores) -> bool:
    """Whether the last `patience` evaluations were all no better than the best one before them."""
    if not patience or len(scores) <= patience:
        return False
    best = min(score for _, score in scores[:-patience])
    return all(score >= best for _, score in scores[-patience:])


def is_checkpoint_due(settings: PretrainSettings, step: int) -> bool:
    """Whether a checkpoint is written before step `step`."""
    return step % settings.checkpoints.every_steps == 0


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Key the step's dropout by (seed, step, rank): a resumed step draws what it would have."""
    digest = hashlib.blake2b(f"{seed},{step},{rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def evaluate(run: Run) -> None:
    """Measure by the evaluator, record it, and remember the score of this step."""
    if run.evaluator is None:
        return
    run.clock.enter("evaluation")
    run.figures = run.evaluator.measure(forward_of(run.engine), all_sum)
    run.state.remember_score(run.evaluator.score(run.figures))
    run.clock.enter("other")
    run.recorder.log_evaluation(run.state.step, run.figures)


def forward_of(engine: Engine) -> Forward:
    """What the engine says to rows, fetched to the host."""

    def forward(rows: Rows) -> TokenOutputs:
        output = engine.evaluate(to_batch(rows, engine.device))
        scores = output.label_scores
        return TokenOutputs(
            output.token_losses.float().cpu().numpy(),
            None if scores is None else scores.float().cpu().numpy(),
        )

    return forward


def checkpoint(run: Run) -> None:
    """Save, then tell the launcher; every rank takes part."""
    run.clock.enter("checkpoint")
    run.state.seconds = run.clock.totals()
    run.save(run.state)
    run.note("checkpoint", step=run.state.step, seconds=run.state.seconds)
    run.clock.enter("other")
    run.boundary.report({"step": run.state.step})
