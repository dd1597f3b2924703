"""What goes into the training forward and what comes out of it.

It stands apart because the loop and the engines move these around without knowing the model.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Rows of packed samples, each field [B, S]; the order is that of the model's arguments."""

    tokens: Tensor
    """Input ids."""
    targets: Tensor
    """Ids to predict; what stands where loss_mask is 0 has no effect. Of a classification
    they may be [B, S, labels]."""
    position_ids: Tensor
    """Place in the corrupted text of the sample."""
    block_position_ids: Tensor
    """0 in Part A, 1, 2, … inside each span of Part B."""
    segment_ids: Tensor
    """1, 2, … for the samples of a row, 0 for padding."""
    prefix_ends: Tensor
    """Row index at which Part A of the token's sample ends."""
    loss_mask: Tensor
    """1 where a token is predicted, else 0."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        """The same batch on `device`."""
        return type(self)(*(field.to(device, non_blocking=non_blocking) for field in self))


class LossOutput(NamedTuple):
    """What the training forward returns."""

    loss_sum: Tensor
    """fp32 scalar with a gradient: the sum, not the mean, over loss-bearing tokens."""
    token_losses: Tensor
    """fp32 [B, S] without a gradient, 0 where loss_mask is 0."""
    label_scores: Tensor | None = None
    """Of a classifier outside training: fp32 [B, S, labels], 0 where loss_mask is 0."""
