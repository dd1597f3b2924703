"""Cross-entropy over a tied vocabulary table that never holds all logits at once.

It stands apart as an autograd function that computes its gradients already in the forward pass:
logits are made once, a chunk at a time, and the backward pass needs no weight, which an engine
that shards parameters may have given back by then.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glm_dist.model.batch import LossOutput


def tied_logits(weight: Tensor, hidden: Tensor, vocab_size: int) -> Tensor:
    """Logits [..., rows of weight] in fp32 at least; columns past `vocab_size` are -inf."""
    return _logits(weight, hidden, vocab_size).to(_wide(weight))


def loss_rows(loss_mask: Tensor) -> Tensor | None:
    """Flat indices of the loss-bearing tokens, so that nothing else is computed for the loss.

    None where their number is not known to the host: fetching it would make the device wait, so
    there all tokens are computed and masked, in shapes that never change.
    """
    if loss_mask.device.type != "cpu":
        return None
    return loss_mask.flatten().nonzero().squeeze(1)


def tied_cross_entropy(
    weight: Tensor,
    hidden: Tensor,
    targets: Tensor,
    loss_mask: Tensor,
    rows: Tensor | None,
    *,
    vocab_size: int,
    chunk_tokens: int,
) -> LossOutput:
    """Summed cross-entropy of the loss-bearing tokens.

    Args:
        weight: word embedding table [V, hidden size].
        hidden: final hidden states, [B, S, hidden size] or those of `rows` alone.
        targets: ids [B, S].
        loss_mask: 0 or 1, [B, S].
        rows: what `loss_rows` says of the mask.
        vocab_size: columns that count; padded ones past it get no probability.
        chunk_tokens: tokens whose logits exist at one time.
    """
    chosen = targets.flatten().long()
    if rows is None:
        mask = loss_mask.flatten().float()
        flat = hidden.flatten(0, -2)
        loss_sum, losses = _cross_entropy(weight, flat, chosen, mask, vocab_size, chunk_tokens)
        return LossOutput(loss_sum, losses.view(targets.shape))
    chosen = chosen[rows]
    loss_sum, losses = _cross_entropy(weight, hidden, chosen, None, vocab_size, chunk_tokens)
    token_losses = losses.new_zeros(targets.numel()).index_copy_(0, rows, losses)
    return LossOutput(loss_sum, token_losses.view(targets.shape))


def _cross_entropy(
    weight: Tensor,
    hidden: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    vocab_size: int,
    chunk_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Loss sum and detached losses [N] of rows [N]; `mask` None means that all of them count."""
    inputs = (weight, hidden, targets, mask, vocab_size, chunk_tokens)
    if torch.is_grad_enabled() and (weight.requires_grad or hidden.requires_grad):
        loss_sum, losses = _ChunkedCrossEntropy.apply(*inputs)
        return loss_sum, losses
    losses = hidden.new_empty(len(hidden), dtype=_wide(hidden))
    for chunk in _chunks(len(hidden), chunk_tokens):
        losses[chunk] = _log_probabilities(*inputs[:3], chunk, vocab_size)[1]
    losses = losses if mask is None else losses * mask
    return losses.sum(), losses


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Gradients of the sum are taken beside the losses; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        hidden: Tensor,
        targets: Tensor,
        mask: Tensor | None,
        vocab_size: int,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        losses = hidden.new_empty(len(hidden), dtype=_wide(hidden))
        grad_hidden = torch.empty_like(hidden)
        # fp32 at least, whatever the weight is: a half precision sum over chunks would drop small
        # terms, and fp16 could overflow, since the sum is not yet divided by the number of tokens.
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight))
        for chunk in _chunks(len(hidden), chunk_tokens):
            logs, losses[chunk] = _log_probabilities(weight, hidden, targets, chunk, vocab_size)
            grad_logits = _grad_logits(logs, targets[chunk], mask if mask is None else mask[chunk])
            grad_logits = grad_logits.to(weight.dtype)
            grad_hidden[chunk] = grad_logits @ weight
            grad_weight += grad_logits.T @ hidden[chunk]
        losses = losses if mask is None else losses * mask
        ctx.save_for_backward(grad_weight, grad_hidden)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(losses)
        ctx.set_materialize_grads(False)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_sum = grads[0]
        if grad_sum is None:
            return (None,) * 6
        grad_weight, grad_hidden = ctx.saved_tensors
        scaled_weight = (grad_weight * grad_sum).to(ctx.weight_dtype)
        return scaled_weight, grad_hidden * grad_sum, None, None, None, None


def _log_probabilities(
    weight: Tensor, hidden: Tensor, targets: Tensor, chunk: slice, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N, V] of one chunk in fp32 at least, and its losses [N]."""
    logits = _logits(weight, hidden[chunk], vocab_size)
    logs = logits.log_softmax(dim=-1, dtype=_wide(logits))
    return logs, -logs.gather(1, targets[chunk, None]).squeeze(1)


def _logits(weight: Tensor, hidden: Tensor, vocab_size: int) -> Tensor:
    logits = F.linear(hidden, weight)
    logits[..., vocab_size:] = -torch.inf
    return logits


def _grad_logits(logs: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax minus one-hot, in the memory of `logs`."""
    grad = logs.exp_()
    grad.scatter_add_(1, targets[:, None], grad.new_full((len(grad), 1), -1.0))
    return grad if mask is None else grad.mul_(mask[:, None])


def _wide(tensor: Tensor) -> torch.dtype:
    """What sums are kept in: fp32, or float64 where the model itself computes in it."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunks(num_rows: int, size: int) -> Iterator[slice]:
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))
