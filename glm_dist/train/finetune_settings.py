"""The settings of a fine-tuning run: those of pretraining, a task, and epochs in place of steps.

They stand apart from the preparation so that reading them needs neither torch nor data.
"""

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from glm_dist.config import Settings
from glm_dist.data.rows import RowSettings
from glm_dist.tasks import AnyTask
from glm_dist.tasks.settings import ReplaySettings
from glm_dist.train.settings import (
    BatchSettings,
    DurationSettings,
    EvaluationSettings,
    GuardSettings,
    PretrainSettings,
    ScheduleSettings,
)


class TuningRowSettings(RowSettings):
    """How examples become rows."""

    sequence_length: int = 256


class TuningBatchSettings(BatchSettings):
    """The batch, counted in rows, each of which holds as many examples as fit."""

    global_batch_size: int = 8
    micro_batch_size: int = 4


class TuningScheduleSettings(ScheduleSettings):
    """The learning rate over the run: a longer rise than in pretraining, and down to nothing."""

    peak_learning_rate: float = 3e-4
    warmup_share: float = 0.1
    final_share: float = 0.0


class TuningEvaluationSettings(EvaluationSettings):
    """Dev scores in the loop; the model with the best one is kept."""

    num_rows: int = 512
    """Dev rows at most; 0 for no evaluation."""
    patience: int = Field(3, ge=0)
    restores_best: bool = True


class TuningGuardSettings(GuardSettings):
    """Steps whose numbers are in trouble; what is fitted closely has outliers that are none."""

    outlier_factor: float = Field(0.0, ge=0)


class SearchSettings(Settings):
    """What `--search` tries; of the settings that have one value alone it tries no other."""

    learning_rates: tuple[PositiveFloat, PositiveFloat] | None = None
    """Peak learning rates between these two, any as likely as its double; by default from a third
    of schedule.peak_learning_rate to three times as much. Twice the same for that one alone."""
    epochs: list[PositiveFloat] = []
    """Each as likely; by default those of the config alone."""
    batch_sizes: list[PositiveInt] = []
    """Rows of one optimizer step, each as likely; by default those of the config alone."""

    @field_validator("learning_rates")
    @classmethod
    def _check_order(cls, rates: tuple[float, float] | None) -> tuple[float, float] | None:
        if rates is not None and rates[0] > rates[1]:
            raise ValueError("the first rate is above the second; turn them round")
        return rates


class FinetuneSettings(PretrainSettings):
    """Everything of a fine-tuning run; what is not said here is as in pretraining."""

    name: str = "finetuned"
    """Name of the run, shown in reports and in wandb."""
    task: AnyTask
    """What is learnt, and from which examples."""
    epochs: float = Field(5.0, gt=0)
    """Times each example is seen at most; `duration` in its place counts steps or tokens."""
    evaluations_per_epoch: float = Field(1.0, gt=0)
    """Dev scores an epoch, where evaluation.every_steps is not given."""
    dropout: float | None = Field(0.1, ge=0, lt=1)
    """Dropout probability in all places while tuning; null as the model was made."""
    replay: ReplaySettings = ReplaySettings()
    rows: TuningRowSettings = TuningRowSettings()
    duration: DurationSettings = DurationSettings(num_steps=1)
    batch: TuningBatchSettings = TuningBatchSettings()
    schedule: TuningScheduleSettings = TuningScheduleSettings()
    evaluation: TuningEvaluationSettings = TuningEvaluationSettings()
    guard: TuningGuardSettings = TuningGuardSettings()
    search: SearchSettings = SearchSettings()

    def _head_problems(self) -> list[str]:
        return []

    def _rhythm_problems(self) -> list[str]:
        return super()._rhythm_problems() if self.is_settled else []

    @property
    def is_settled(self) -> bool:
        """Whether steps and rhythm have been made of the epochs."""
        return "dataset" in self.model_fields_set
