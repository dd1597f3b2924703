"""Whether a step's gradient may be used: it is finite, and no outlier against the steps before.

Every rank judges by the same two numbers, so all decide alike, and what is remembered is part of
the `TrainState`: a resumed run decides what it would have decided.
"""

import math
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import numpy as np

from glm_dist.train.settings import GuardSettings

NORMAL_CONSISTENCY = 1.4826
"""Median absolute deviation to standard deviation, for normally distributed values."""
LEAST_SPREAD = 0.03
"""Share of the median that the spread is taken to be at least, however calm the curve is."""
COLLAPSE_OVERFLOWS, COLLAPSE_STEPS = 4, 20
"""So many overflows of fp16 in so many steps are no search for a scale: GLM-130B's fell like that
thirty steps before its loss exploded (THUDM/GLM-130B, logs/main-log-en.md, 12 June)."""


class Figures(NamedTuple):
    """What a step is judged by, the same on all ranks."""

    loss: float
    """Mean over the global batch."""
    grad_norm: float
    """Global, before clipping."""
    loss_scale: float = 1.0
    """What fp16 multiplied the loss by."""

    @property
    def has_overflowed(self) -> bool:
        """Whether a loss scale alone may be at fault, which is halved for it."""
        is_explained = self.loss_scale > 1 and math.isfinite(self.loss)
        return is_explained and not math.isfinite(self.grad_norm)


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
    overflows: list[tuple[int, int]] = field(default_factory=list)
    """Step and next row of the last overflows of fp16, oldest first."""


class Guard:
    """Judges one step after the other against a window of those that were applied."""

    def __init__(self, settings: GuardSettings, memory: GuardMemory) -> None:
        self._settings, self._memory = settings, memory

    def judge(self, step: int, next_row: int, figures: Figures) -> Verdict:
        """What to do with the step that begins at global row `next_row`."""
        memory = self._memory
        if figures.has_overflowed:
            return self._judge_overflow(step, next_row)
        if self.reason(figures) is None:
            self._remember(figures.loss, figures.grad_norm)
            return Verdict.APPLY
        if memory.first_bad is None:
            memory.first_bad = (step, next_row)
        memory.num_bad += 1
        is_spike = memory.num_bad >= self._settings.spike_steps
        return Verdict.REWIND if is_spike else Verdict.DISCARD

    def reason(self, figures: Figures) -> str | None:
        """Why a step with these figures would not be applied, None where it would."""
        loss, grad_norm, loss_scale = figures
        if figures.has_overflowed:
            return f"its gradient overflowed float16 at a loss scale of {loss_scale:g}"
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

    def _judge_overflow(self, step: int, next_row: int) -> Verdict:
        """Drop the step; too many in a short time are trouble, once the first scale is found."""
        memory = self._memory
        recent = [pair for pair in memory.overflows if pair[0] > step - COLLAPSE_STEPS]
        memory.overflows = [*recent, (step, next_row)]
        is_settled = len(memory.losses) >= self._settings.window_steps // 4
        if not is_settled or len(memory.overflows) < COLLAPSE_OVERFLOWS:
            return Verdict.DISCARD
        memory.first_bad = memory.overflows[0]
        return Verdict.REWIND

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
