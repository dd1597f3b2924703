"""The factor on fp16 losses: large enough that small gradients do not vanish, and none overflows.

It stands apart because all engines follow one rule, whatever DeepSpeed's own would be, so that they
skip the same steps.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from glm_dist.engine.settings import EngineSettings

LEAST_SCALE = 1.0
LARGEST_SCALE = 2.0**24
"""Brings the least fp16 number above its own square: nothing is left to be gained."""


@dataclass
class LossScale:
    """What losses are multiplied by before the backward pass."""

    value: float = LEAST_SCALE
    steps_since_change: int = 0
    """Steps applied since it was last halved or doubled."""
    growth_steps: int = 0
    """Steps after which it is doubled; 0 for a scale that never changes."""

    @classmethod
    def of(cls, settings: EngineSettings, dtype: torch.dtype) -> "LossScale":
        """The scale of a run's first step; a constant 1 in types as wide as fp32's exponent."""
        if dtype != torch.float16:
            return cls()
        return cls(settings.initial_loss_scale, growth_steps=settings.loss_scale_growth_steps)

    def step_applied(self) -> None:
        """A step's gradients were finite and used."""
        self.steps_since_change += 1
        if self.growth_steps and self.steps_since_change >= self.growth_steps:
            self.value = min(LARGEST_SCALE, 2 * self.value)
            self.steps_since_change = 0

    def overflowed(self) -> None:
        """A step's gradients were not finite."""
        if self.growth_steps:
            self.value = max(LEAST_SCALE, self.value / 2)
            self.steps_since_change = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    def load(self, values: dict[str, Any] | None) -> None:
        """Go on where a checkpoint stood; one of another type, or without a scale, says nothing."""
        if self.growth_steps and values is not None and values["growth_steps"]:
            self.value = float(values["value"])
            self.steps_since_change = int(values["steps_since_change"])
