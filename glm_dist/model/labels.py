"""Classification of sequences and of tokens: a linear map on the last hidden states, and its loss.

It stands apart from the cross-entropy over words, whose table is too large for all logits at once.
As in the reference's head (GLM_SPEC 3.1) a sequence is classified by one pooled token; which one is
`ModelSettings.pools_first`, and in a batch the token where the loss mask stands.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glm_dist.model.batch import LossOutput
from glm_dist.model.settings import ModelSettings


class LabelScores(nn.Linear):
    """Scores [..., labels] of hidden states, laid out as in transformers' classes.

    Those have a bias where tokens are labelled, and none where sequences are.
    """

    def __init__(self, settings: ModelSettings) -> None:
        head = settings.head
        has_bias = head.kind == "token_classification"
        super().__init__(settings.hidden_size, len(head.labels), bias=has_bias)
        self._dropout = head.dropout

    def forward(self, hidden: Tensor) -> Tensor:
        """Scores of hidden states [..., hidden size]."""
        return super().forward(F.dropout(hidden, self._dropout, self.training))


def label_loss(
    scores: Tensor,
    targets: Tensor,
    loss_mask: Tensor,
    rows: Tensor | None,
    *,
    is_exclusive: bool = False,
) -> LossOutput:
    """Summed cross-entropy of the labelled tokens; of several labels the mean over them all.

    Args:
        scores: [B, S, labels], or those of `rows` alone.
        targets: ids [B, S]; or shares of each label, 0 to 1, [B, S, labels].
        loss_mask: 0 or 1, [B, S].
        rows: flat indices of the labelled tokens, None where the host does not know them.
        is_exclusive: whether a token's shares are those of one label, so that they add up to 1.
    """
    wide = torch.promote_types(scores.dtype, torch.float32)
    flat = scores.to(wide).view(-1, scores.shape[-1])
    chosen = targets.flatten(0, 1)
    if rows is not None:
        chosen = chosen[rows]
    elif targets.dim() == 2:
        # What stands in unlabelled places need be no id of a label.
        chosen = chosen.where(loss_mask.flatten() > 0, 0)
    if targets.dim() == 3 and is_exclusive:
        losses = F.cross_entropy(flat, chosen.to(wide), reduction="none")
    elif targets.dim() == 3:
        losses = F.binary_cross_entropy_with_logits(flat, chosen.to(wide), reduction="none").mean(1)
    else:
        losses = F.cross_entropy(flat, chosen.long(), reduction="none")
    if rows is None:
        token_losses = losses * loss_mask.flatten()
    else:
        token_losses = losses.new_zeros(loss_mask.numel()).index_copy(0, rows, losses)
    label_scores = None if torch.is_grad_enabled() else _laid_out(flat, loss_mask, rows)
    return LossOutput(token_losses.sum(), token_losses.detach().view(loss_mask.shape), label_scores)


def _laid_out(flat: Tensor, loss_mask: Tensor, rows: Tensor | None) -> Tensor:
    """Scores of the labelled tokens in their places, [B, S, labels]."""
    if rows is None:
        flat = flat * loss_mask.flatten()[:, None]
    else:
        flat = flat.new_zeros(loss_mask.numel(), flat.shape[-1]).index_copy(0, rows, flat)
    return flat.view(*loss_mask.shape, -1)
