"""The settings of pattern-exploiting training: those of fine-tuning, the texts, and the ensemble.

They stand apart from the training so that reading them needs neither torch nor data.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from glm_dist.config import Settings, output_path
from glm_dist.metrics.sinks import SinkSettings
from glm_dist.tasks.classification import ClassificationSettings
from glm_dist.tasks.settings import Files
from glm_dist.train.finetune_settings import FinetuneSettings


class FinalSettings(Settings):
    """The classifier that is trained on the ensemble's labels; it has a head."""

    epochs: float = Field(3.0, gt=0)
    """Times each text is seen at most."""
    peak_learning_rate: float | None = Field(None, gt=0)
    """As that of the ensemble if null."""


class PetSettings(FinetuneSettings):
    """A classification of which few examples are labelled, with many texts that are not."""

    name: str = "pet"
    init_from: str = "runs/base"
    """The model that all begin with; below GLM_DIST_HOME if relative."""
    task: ClassificationSettings
    """What is learnt by cloze, a model for each of its patterns; `shots` says how many examples of
    each label are labelled."""
    unlabelled: Files | None = None
    """Texts without labels, read as the task's examples are; by default the training examples that
    `task.shots` leaves out, whose labels are not looked at."""
    num_unlabelled: int | None = Field(10_000, ge=1)
    """As many of them at most, the same ones in every run."""
    seeds: list[int] = Field([1234, 5678, 3456], min_length=1)
    """A model of each pattern for each of these."""
    weights: Literal["untuned", "uniform"] = "untuned"
    """How much each pattern counts: untuned, by the accuracy that the model has with it on the
    labelled examples before any tuning, as in the paper; uniform, all alike."""
    soften: float = Field(2.0, gt=0)
    """Temperature of the ensemble's labels; above 1 less sure."""
    final: FinalSettings = FinalSettings()
    sinks: SinkSettings = SinkSettings(tensorboard=False, wandb="off")

    @property
    def run_path(self) -> Path:
        """The folder of all its runs, absolute."""
        return output_path(self.run_folder or f"runs/{self.name}")
