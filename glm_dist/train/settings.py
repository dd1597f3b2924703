"""The settings of a pretraining run: the root of its YAML file."""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from glm_dist.config import Settings, output_path
from glm_dist.data.rows import RowSettings
from glm_dist.engine.settings import EngineSettings
from glm_dist.metrics.sinks import SinkSettings
from glm_dist.model.settings import ModelSettings
from glm_dist.model.tuning_settings import TuningSettings
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
    patience: int = Field(0, ge=0)
    """The run ends when so many evaluations in a row were no better than the best one; 0: never."""
    restores_best: bool = False
    """The finished model is that of the checkpoint with the best evaluation, not of the last step;
    checkpoints are then written where evaluations are."""


class CheckpointSettings(Settings):
    """Checkpoints of the run."""

    folder: str | None = None
    """Where they lie: a URL that pyarrow opens (s3://bucket/run, gs://…), or a folder that all
    nodes see, below GLM_DIST_HOME if relative; by default the run folder. One run has it alone."""
    every_steps: int = 100
    """Steps between checkpoints; one more stands at the end."""
    keep_last: int = 2
    """Verified checkpoints kept besides milestones."""
    asynchronous: bool = True
    """Write while training goes on, from a copy in host memory; a rank that is killed meanwhile
    loses the steps since the checkpoint before. false: training waits until it is written."""
    max_missed: int = 3
    """Checkpoints in a row that may fail to be written, on a full disk, before the run ends."""
    milestone_every_steps: int = 0
    """Steps between checkpoints that are kept for good; 0 for none."""


def checkpoint_location(folder: str | None) -> str | None:
    """Where checkpoints lie if not in the run folder: a URL, or an absolute path."""
    return str(output_path(folder)) if folder and "://" not in folder else folder


class GuardSettings(Settings):
    """Steps whose numbers are in trouble.

    One whose loss or gradient is not finite is always left out, by all ranks.
    """

    outlier_factor: float = Field(10.0, ge=0)
    """A step is left out too when its loss or gradient norm lies so many robust standard
    deviations above the median of the steps before; 0 for never."""
    window_steps: int = Field(128, ge=4)
    """Steps it is compared with; none is an outlier before a quarter of them is there."""
    spike_steps: int = Field(3, ge=2)
    """After so many bad steps in a row the run goes back to the last checkpoint before them."""
    skip_steps: int = Field(200, ge=1)
    """Steps' worth of rows, from the first bad step on, that it then leaves out for good."""
    max_rewinds: int = Field(3, ge=0)
    """Times a run goes back before it gives up."""
    check_every_steps: int = Field(0, ge=0)
    """Steps between checks for silent corruption: ranks compare their weights, and each computes a
    micro-batch's losses twice; 0 for none."""


class WorkerRange(Settings):
    """As many workers as the cluster has room for, between two numbers."""

    min: int = Field(1, ge=1)
    """Fewest workers a run goes on with."""
    max: int = Field(ge=1)
    """Most workers it takes."""


class WorkerSettings(Settings):
    """Who trains."""

    num_workers: int | WorkerRange = 2
    """Training processes, each one rank; {min: 1, max: 4} takes what the cluster has and follows
    it when nodes go and come."""
    use_gpu: bool | None = None
    """One GPU a worker; by default when the cluster has that many."""
    cpus_per_worker: float = 1
    """Logical CPUs reserved for each worker; its torch uses as many threads."""
    max_failures: int = 10
    """Failures in a row, without a new checkpoint in between, before the run gives up."""
    hang_seconds: float = Field(600.0, gt=0)
    """Without any progress for so long the ranks' stacks are written down, who did not arrive is
    named, and the group starts again."""
    wait_minutes: float = Field(60.0, ge=0)
    """How long a run that has lost nodes waits for room before it gives up."""

    @property
    def fewest(self) -> int:
        """Workers it takes at least."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers.min

    @property
    def most(self) -> int:
        """Workers it takes at most."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers.max


class PretrainSettings(Settings):
    """Everything of a pretraining run."""

    name: str = "sample"
    """Name of the run, shown in reports and in wandb."""
    run_folder: str | None = None
    """Where everything of the run lies; below GLM_DIST_HOME if relative; runs/<name> by default."""
    dataset: str = "data/sample"
    """Folder made by prepare_data; below GLM_DIST_HOME if relative."""
    init_from: str | None = None
    """A finished model, or the run that made it, whose weights this run begins with; below
    GLM_DIST_HOME if relative. Rows of a longer position table or a larger vocabulary begin anew."""
    seed: int = 1234
    """Seed of weights, row order, spans and dropout."""
    duration: DurationSettings = DurationSettings(num_steps=600)
    batch: BatchSettings = BatchSettings()
    rows: RowSettings = RowSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    tuning: TuningSettings = TuningSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    guard: GuardSettings = GuardSettings()
    workers: WorkerSettings = WorkerSettings()
    sinks: SinkSettings = SinkSettings()
    log_every_steps: int = 10
    """Steps between lines on the terminal and in the sinks."""

    @property
    def run_path(self) -> Path:
        """The run's folder, absolute."""
        return output_path(self.run_folder or f"runs/{self.name}")

    @property
    def checkpoint_location(self) -> str | None:
        """See the function of this name."""
        return checkpoint_location(self.checkpoints.folder)

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
    def world_sizes(self) -> list[int]:
        """Numbers of workers that share the global batch evenly, ascending."""
        rows, micro = self.batch.global_batch_size, self.batch.micro_batch_size
        sizes = range(self.workers.fewest, self.workers.most + 1)
        return [size for size in sizes if rows % (size * micro) == 0]

    @property
    def rows_per_rank(self) -> int:
        """Rows of one worker in one optimizer step, at the largest number of workers."""
        return self.batch.global_batch_size // self.world_sizes[-1]

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of one worker in one optimizer step."""
        return self.rows_per_rank // self.batch.micro_batch_size

    @model_validator(mode="after")
    def _check(self) -> "PretrainSettings":
        problems = [*self._duration_problems(), *self._batch_problems(), *self._rhythm_problems()]
        problems += [*self._model_problems(), *self._storage_problems()]
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
        fewest, most = self.workers.fewest, self.workers.most
        if min(rows, micro, fewest) < 1 or most < fewest:
            return ["batch and workers: sizes must be at least 1, and max no less than min"]
        if not self.world_sizes:
            workers = str(most) if fewest == most else f"neither of {fewest} to {most}"
            return [
                f"batch.global_batch_size: got {rows}, which {workers} workers x micro-batches of "
                f"{micro} do not divide; use a multiple of {most * micro}, e.g. "
                f"{math.ceil(rows / (most * micro)) * most * micro}"
            ]
        return []

    def _model_problems(self) -> list[str]:
        problems = self._head_problems()
        if self.tuning.is_adapter and self.init_from is None:
            problems.append(
                f"tuning.kind: got {self.tuning.kind}, which is trained beside a finished model; "
                "give it as init_from, or set tuning.kind: none"
            )
        return problems

    def _storage_problems(self) -> list[str]:
        if self.run_folder is None or "://" not in self.run_folder:
            return []
        return [
            f"run_folder: got {self.run_folder}, and a run's own folder needs files that only one "
            "driver can create, which pyarrow's file systems do not offer; put it on storage that "
            f"all nodes mount, and its checkpoints there: checkpoints.folder: {self.run_folder}"
        ]

    def _head_problems(self) -> list[str]:
        if not self.model.head.is_classifier:
            return []
        return [
            f"model.head.kind: got {self.model.head.kind}, and pretraining predicts tokens; set it "
            "to language_model"
        ]

    def _rhythm_problems(self) -> list[str]:
        every = self.checkpoints.every_steps
        if self.log_every_steps < 1 or every < 1:
            return ["log_every_steps and checkpoints.every_steps: must be at least 1"]
        if every % self.log_every_steps:
            return [
                f"checkpoints.every_steps: got {every}, not a multiple of log_every_steps "
                f"{self.log_every_steps}; a resumed curve would have other points"
            ]
        if self.evaluation.restores_best and self.evaluation.every_steps % every:
            return [
                f"evaluation.every_steps: got {self.evaluation.every_steps}, not a multiple of "
                f"checkpoints.every_steps {every}; evaluation.restores_best needs one of each"
            ]
        return []
