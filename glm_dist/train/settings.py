"""The settings of a pretraining run: the root of its YAML file."""

import math
from typing import Literal

from pydantic import model_validator

from glm_dist.config import Settings
from glm_dist.data.rows import RowSettings
from glm_dist.engine.settings import EngineSettings
from glm_dist.metrics.sinks import SinkSettings
from glm_dist.model.settings import ModelSettings
from glm_dist.objective import ObjectiveSettings


class DurationSettings(Settings):
    """How long to train; exactly one of steps and tokens is given."""

    num_steps: int | None = None
    """Optimizer steps of the whole run."""
    num_tokens: int | None = None
    """Row tokens of the whole run, padding included; rounded up to whole steps."""


class BatchSettings(Settings):
    """The batch, counted in rows; the global batch does not depend on the number of workers."""

    global_batch_size: int = 64
    """Rows of one optimizer step over all workers."""
    micro_batch_size: int = 32
    """Rows of one forward and backward on one worker."""


class ScheduleSettings(Settings):
    """The learning rate over the run."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    """cosine: to the final share over the run; wsd: constant, then linear decay at the end."""
    peak_learning_rate: float = 4e-4
    """Learning rate after warm-up."""
    final_share: float = 0.1
    """Learning rate at the end as a share of the peak."""
    warmup_share: float = 0.04
    """Share of all steps in which the learning rate rises linearly from zero."""
    decay_share: float = 0.2
    """wsd only: share of all steps in which the learning rate falls."""


class EvaluationSettings(Settings):
    """Held-out loss in the loop."""

    every_steps: int = 200
    """Steps between evaluations; one more stands at the end. 0: only at the end."""
    num_rows: int = 256
    """Held-out rows, always the same ones; 0 for no evaluation."""
    objective: ObjectiveSettings | None = None
    """What the held-out rows are cut by; by default as in training."""


class CheckpointSettings(Settings):
    """Checkpoints of the run folder."""

    every_steps: int = 100
    """Steps between checkpoints; one more stands at the end."""
    keep_last: int = 2
    """Verified checkpoints kept besides milestones."""
    milestone_every_steps: int = 0
    """Steps between checkpoints that are kept for good; 0 for none."""


class WorkerSettings(Settings):
    """Who trains."""

    num_workers: int = 2
    """Training processes; each is one rank."""
    use_gpu: bool | None = None
    """One GPU a worker; by default when the cluster has that many."""
    cpus_per_worker: float = 1
    """Logical CPUs reserved for each worker; its torch uses as many threads."""
    max_failures: int = 10
    """Restarts after failures before the run gives up."""


class PretrainSettings(Settings):
    """Everything of a pretraining run."""

    name: str = "sample"
    """Name of the run, shown in reports and in wandb."""
    run_folder: str | None = None
    """Where everything of the run lies; below GLM_DIST_HOME if relative; runs/<name> by default."""
    dataset: str = "data/sample"
    """Folder made by prepare_data; below GLM_DIST_HOME if relative."""
    seed: int = 1234
    """Seed of weights, row order, spans and dropout."""
    duration: DurationSettings = DurationSettings(num_steps=600)
    batch: BatchSettings = BatchSettings()
    rows: RowSettings = RowSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    workers: WorkerSettings = WorkerSettings()
    sinks: SinkSettings = SinkSettings()
    log_every_steps: int = 10
    """Steps between lines on the terminal and in the sinks."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.duration.num_steps is not None:
            return self.duration.num_steps
        return math.ceil((self.duration.num_tokens or 0) / self.tokens_per_step)

    @property
    def tokens_per_step(self) -> int:
        """Row tokens of one optimizer step, padding included."""
        return self.batch.global_batch_size * self.rows.sequence_length

    @property
    def rows_per_rank(self) -> int:
        """Rows of one worker in one optimizer step."""
        return self.batch.global_batch_size // self.workers.num_workers

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of one worker in one optimizer step."""
        return self.rows_per_rank // self.batch.micro_batch_size

    @model_validator(mode="after")
    def _check(self) -> "PretrainSettings":
        problems = [*self._duration_problems(), *self._batch_problems(), *self._rhythm_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _duration_problems(self) -> list[str]:
        given = [self.duration.num_steps, self.duration.num_tokens]
        if sum(value is not None for value in given) != 1:
            return ["duration: give exactly one of num_steps and num_tokens"]
        if self.num_steps < 1:
            return [f"duration: comes to {self.num_steps} steps; at least 1 is needed"]
        return []

    def _batch_problems(self) -> list[str]:
        rows, micro = self.batch.global_batch_size, self.batch.micro_batch_size
        workers = self.workers.num_workers
        if min(rows, micro, workers) < 1:
            return ["batch and workers: sizes must be at least 1"]
        if rows % (workers * micro):
            return [
                f"batch.global_batch_size: got {rows}, which {workers} workers x micro-batches of "
                f"{micro} do not divide; use a multiple of {workers * micro}, e.g. "
                f"{math.ceil(rows / (workers * micro)) * workers * micro}"
            ]
        return []

    def _rhythm_problems(self) -> list[str]:
        every = self.checkpoints.every_steps
        if self.log_every_steps < 1 or every < 1:
            return ["log_every_steps and checkpoints.every_steps: must be at least 1"]
        if every % self.log_every_steps:
            return [
                f"checkpoints.every_steps: got {every}, not a multiple of log_every_steps "
                f"{self.log_every_steps}; a resumed curve would have other points"
            ]
        return []
