"""What the loop knows of an engine.

It stands apart because the loop, the checkpoints and the tests speak to every engine alike.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from glm_dist.model.batch import Batch, LossOutput

STATE_KEYS = ("master", "exp_avg", "exp_avg_sq")
"""fp32 tensors kept for every trained element: the weight and AdamW's two moments. Of a frozen one
there is the weight alone."""

ReadSlice = Callable[[str, int, int], dict[str, Tensor]]
"""(parameter name, first element, number of elements) to a flat tensor for each key that is kept of
the parameter, and under "step" a scalar with the optimizer steps behind them."""


class StepHealth(NamedTuple):
    """What is known of a step's gradient before it is used; the same on all ranks."""

    grad_norm: Tensor
    """Global L2 norm before clipping, an fp32 scalar on the device; inf where not finite."""
    is_finite: Tensor
    """Bool scalar on the device; reading it is the step's one host synchronisation."""
    loss_scale: float = 1.0
    """What fp16 multiplied the loss by: above 1, what is not finite may be an overflow alone."""


class Slice(NamedTuple):
    """The part of one parameter's state that one rank keeps."""

    name: str
    global_shape: tuple[int, ...]
    offset: int
    """First element, counted in the flattened parameter."""
    tensors: dict[str, Tensor]
    """A flat fp32 tensor for each of STATE_KEYS; of a frozen parameter the master alone."""
    step: int
    """Optimizer steps taken; 0 for a frozen parameter."""


class Engine(Protocol):
    """Forward, backward and update of one model over all ranks.

    A step is any number of `backward`, the last one marked, then `prepare`, then either `apply` or
    `discard`; every rank makes the same calls.
    """

    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype
    parameter_shapes: dict[str, tuple[int, ...]]
    """Of what checkpoints hold: all parameters but those that are rebuilt."""
    trained_names: frozenset[str]
    """Those of them that have a gradient."""

    def backward(self, batch: Batch, scale: float | Tensor, is_last: bool) -> LossOutput:
        """Add the gradient of `loss_sum * scale` to this step's, which sums over all ranks.

        Args:
            batch: this rank's rows, on the device; they may hold no loss-bearing token.
            scale: 1 / the loss-bearing tokens of the global batch, for a mean over them.
            is_last: whether this is the step's last micro-batch.
        """

    def prepare(self) -> StepHealth:
        """Sum the step's gradient over ranks and measure it; nothing is changed."""

    def apply(self, learning_rate: float) -> None:
        """Clip the gradient and update the weights."""

    def discard(self) -> None:
        """Drop the gradient; weights, moments and step count stay as they are.

        fp16 halves its loss scale where the gradient was not finite.
        """

    def evaluate(self, batch: Batch) -> LossOutput:
        """Loss without gradients or dropout; between steps only."""

    def slices(self) -> Iterator[Slice]:
        """This rank's share of the state; over all ranks every element comes once."""

    def load_slices(self, read: ReadSlice) -> None:
        """Take the whole state from elsewhere, whatever the layout it was written in."""

    def load_loss_scale(self, values: dict[str, Any] | None) -> None:
        """Go on with the loss scale that `describe` gave; None where it gave none."""

    def full_weights(self) -> dict[str, Tensor] | None:
        """fp32 weights on the host by name, on rank 0; None elsewhere. All ranks call it."""

    def replica_hash(self) -> str:
        """Hash of this rank's copy of the weights, empty where ranks hold shares and no copies."""

    def forward_seconds(self) -> float:
        """Seconds this rank's forward passes took since this was last asked.

        ZeRO-3 gathers weights in them, so that its ranks differ less than their machines do.
        """

    def optimizer_bytes(self) -> int:
        """Bytes of master weights and moments on this rank."""

    def describe(self) -> dict[str, Any]:
        """What runs where, as plain values for logs and reports."""
