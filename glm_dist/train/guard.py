"""Whether a step's gradient may be used: it is finite, and no outlier against the steps before.

Every rank judges by the same two numbers, so all decide alike, and what is remembered is part of
the `TrainState`: a resumed run decides what it would have decided.
"""

import math
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np

from glm_dist.train.settings import GuardSettings

NORMAL_CONSISTENCY = 1.4826
"""Median absolute deviation to standard deviation, for normally distributed values."""
LEAST_SPREAD = 0.03
"""Share of the median that the spread is taken to be at least, however calm the curve is."""


class Verdict(Enum):
    """What is to be done with a step's gradient."""

    APPLY = auto()
    DISCARD = auto()
    REWIND = auto()
    """Drop it, go back to before the bad steps began, and leave their rows out."""


@dataclass
class GuardMemory:
    """What the guard remembers; plain values."""

    losses: list[float] = field(default_factory=list)
    """Mean losses of the last steps that were applied, oldest first."""
    grad_norms: list[float] = field(default_factory=list)
    """Their gradient norms."""
    first_bad: tuple[int, int] | None = None
    """Step and next row at which the present streak of bad steps began."""
    num_bad: int = 0
    """Bad steps in a row up to now."""


class Guard:
    """Judges one step after the other against a window of those that were applied."""

    def __init__(self, settings: GuardSettings, memory: GuardMemory) -> None:
        self._settings, self._memory = settings, memory

    def judge(self, step: int, next_row: int, loss: float, grad_norm: float) -> Verdict:
        """What to do with the step that begins at global row `next_row`."""
        memory = self._memory
        if self.reason(loss, grad_norm) is None:
            self._remember(loss, grad_norm)
            return Verdict.APPLY
        if memory.first_bad is None:
            memory.first_bad = (step, next_row)
        memory.num_bad += 1
        is_spike = memory.num_bad >= self._settings.spike_steps
        return Verdict.REWIND if is_spike else Verdict.DISCARD

    def reason(self, loss: float, grad_norm: float) -> str | None:
        """Why a step with these figures would not be applied, None where it would."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return "its loss or gradient is not finite"
        for name, value, window in (
            ("loss", loss, self._memory.losses),
            ("gradient norm", grad_norm, self._memory.grad_norms),
        ):
            limit = self._limit(window)
            if value > limit:
                return f"its {name} {value:.4g} is above {limit:.4g}, far from the steps before"
        return None

    def _limit(self, window: list[float]) -> float:
        factor = self._settings.outlier_factor
        if not factor or len(window) < self._settings.window_steps // 4:
            return math.inf
        middle = float(np.median(window))
        deviation = NORMAL_CONSISTENCY * float(np.median(np.abs(np.array(window) - middle)))
        return middle + factor * max(deviation, LEAST_SPREAD * abs(middle))

    def _remember(self, loss: float, grad_norm: float) -> None:
        memory, kept = self._memory, self._settings.window_steps
        memory.losses = [*memory.losses, loss][-kept:]
        memory.grad_norms = [*memory.grad_norms, grad_norm][-kept:]
        memory.first_bad, memory.num_bad = None, 0
