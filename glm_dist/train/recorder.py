"""Losses and speeds of the steps since the last line, reduced only when a line is written.

All ranks keep a recorder, because the reduction is a collective; only rank 0 has sinks.
"""

import numpy as np
import torch

from glm_dist.engine import StepHealth
from glm_dist.metrics.clock import Clock
from glm_dist.metrics.memory import peak_bytes
from glm_dist.metrics.sinks import Sinks
from glm_dist.objective import Mode
from glm_dist.train.boundary import all_sum
from glm_dist.train.flops import StepFlops
from glm_dist.train.state import TrainState
from glm_dist.train.totals import StepTotals


class Recorder:
    """Sums per objective mode on the device, counts on the host."""

    def __init__(
        self,
        device: torch.device,
        sinks: Sinks | None,
        clock: Clock,
        flops: StepFlops,
        earlier_wall: float = 0.0,
    ) -> None:
        """Args: `earlier_wall` is the run's wall time in seconds when `clock` was made."""
        self._unclocked_wall = earlier_wall - sum(clock.totals().values())
        self._sinks = sinks
        self._clock = clock
        self._flops = flops
        self._step_losses = torch.zeros(len(Mode), dtype=torch.float64, device=device)
        self._mode_losses = torch.zeros_like(self._step_losses)
        self._reset()

    def add_losses(self, token_losses: torch.Tensor, mode_ids: torch.Tensor) -> None:
        """Add one micro-batch's losses [rows, sequence]; nothing is synchronised."""
        self._step_losses.index_add_(0, mode_ids.flatten().int(), token_losses.flatten().double())

    def step_loss(self) -> float:
        """Sum of this rank's losses in the present step; waits for the device."""
        return float(self._step_losses.sum())

    def add_step(
        self, totals: StepTotals, learning_rate: float, health: StepHealth, applied: bool
    ) -> None:
        """Add one optimizer step's global counts; losses of one that was left out do not count."""
        if applied:
            self._mode_losses += self._step_losses
            self._mode_counts += totals.mode_counts
        self._step_losses.zero_()
        self._steps += 1
        self._tokens += totals.tokens
        self._useful_flops += self._flops.of(totals)
        self._learning_rate, self._grad_norm = learning_rate, float(health.grad_norm)
        self._loss_scale = health.loss_scale

    def log(self, state: TrainState) -> None:
        """Reduce and write one line; every rank calls it, rank 0 writes."""
        losses = all_sum(self._mode_losses.cpu().numpy())
        seconds = self._clock.seconds_since_mark(("data", "compute"))
        metrics = {
            **self._mean_loss(losses),
            **{
                f"loss/{mode.name.lower()}": float(losses[mode] / self._mode_counts[mode])
                for mode in Mode
                if self._mode_counts[mode]
            },
            "learning_rate": self._learning_rate,
            "grad_norm": self._grad_norm,
            "tokens": state.tokens,
            "tokens_per_second": self._tokens / max(seconds, 1e-9),
            "seconds_per_step": seconds / max(1, self._steps),
            "discarded_steps": state.discarded_steps,
            **({"loss_scale": self._loss_scale} if self._loss_scale != 1 else {}),
            "peak_memory_bytes": peak_bytes(self._mode_losses.device),
            **self._flops.utilisation(self._useful_flops, seconds),
            **self._where_time_went(),
        }
        self._write(state.step, metrics)
        self._reset()

    def log_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write held-out figures, which are reduced already."""
        self._write(step, metrics)

    def _where_time_went(self) -> dict[str, float]:
        parts = self._clock.totals()
        wall = self._unclocked_wall + sum(parts.values())
        goodput = parts.get("compute", 0.0) / max(wall, 1e-9)
        return {"goodput": goodput, **{f"seconds/{part}": spent for part, spent in parts.items()}}

    def _mean_loss(self, losses: np.ndarray) -> dict[str, float]:
        """Over all modes; nothing where all steps were left out."""
        count = self._mode_counts.sum()
        return {"loss": float(losses.sum() / count)} if count else {}

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        if self._sinks is not None:
            self._sinks.log(step, metrics)

    def _reset(self) -> None:
        self._mode_losses.zero_()
        self._mode_counts = np.zeros(len(Mode))
        self._steps = 0
        self._tokens = 0
        self._useful_flops = 0.0
        self._learning_rate = 0.0
        self._grad_norm = 0.0
        self._loss_scale = 1.0
        self._clock.mark()
