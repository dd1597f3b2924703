"""Cross-entropy over a tied vocabulary table that never holds all logits at once.

It stands apart as an autograd function that computes its gradients already in the forward pass:
logits are made once, a chunk at a time, and the backward pass needs no weight, which an engine
that shards parameters may have given back by then.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glm_dist.model.batch import LossOutput

CACHED_LOGITS = 1 << 18
"""In fp32 a mebibyte, about the second-level cache of a core of today."""


@dataclass(frozen=True)
class LossOptions:
    """How the loss is computed, and what is minimised beside the cross-entropy."""

    vocab_size: int
    """Columns that count; padded ones past it get no probability."""
    chunk_tokens: int = 1024
    """Tokens whose logits exist at one time."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over the vocabulary."""
    z_loss: float = 0.0
    """Weight of the squared log of the softmax's denominator (PaLM, section 5)."""


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
    options: LossOptions,
) -> LossOutput:
    """Summed loss of the loss-bearing tokens, and the cross-entropy of each.

    Label smoothing and z-loss belong to what is minimised, and so to the sum where it has a
    gradient; the losses of the tokens, and sums without a gradient, are plain cross-entropies.

    Args:
        weight: word embedding table [V, hidden size].
        hidden: final hidden states, [B, S, hidden size] or those of `rows` alone.
        targets: ids [B, S].
        loss_mask: 0 or 1, [B, S].
        rows: what `loss_rows` says of the mask.
        options: how.
    """
    chosen = targets.flatten().long()
    if rows is None:
        mask = loss_mask.flatten().float()
        loss_sum, losses = _cross_entropy(weight, hidden.flatten(0, -2), chosen, mask, options)
        return LossOutput(loss_sum, losses.view(targets.shape))
    loss_sum, losses = _cross_entropy(weight, hidden, chosen[rows], None, options)
    token_losses = losses.new_zeros(targets.numel()).index_copy_(0, rows, losses)
    return LossOutput(loss_sum, token_losses.view(targets.shape))


def _cross_entropy(
    weight: Tensor, hidden: Tensor, targets: Tensor, mask: Tensor | None, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """Loss sum and detached losses [N] of rows [N]; `mask` None means that all of them count."""
    if torch.is_grad_enabled() and (weight.requires_grad or hidden.requires_grad):
        loss_sum, losses = _ChunkedCrossEntropy.apply(weight, hidden, targets, mask, options)
        return loss_sum, losses
    losses = hidden.new_empty(len(hidden), dtype=_wide(hidden))
    for chunk in _chunks(len(hidden), options.chunk_tokens):
        logits = _logits(weight, hidden[chunk], options.vocab_size)
        losses[chunk] = _losses(_log_softmax(logits), targets[chunk])
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
        options: LossOptions,
    ) -> tuple[Tensor, Tensor]:
        losses = hidden.new_empty(len(hidden), dtype=_wide(hidden))
        total = losses.new_zeros(())
        grad_hidden = torch.empty_like(hidden)
        # fp32 at least, whatever the weight is: a half precision sum over chunks would drop small
        # terms, and fp16 could overflow, since the sum is not yet divided by the number of tokens.
        is_trained = ctx.needs_input_grad[0]
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight)) if is_trained else None
        for chunk in _chunks(len(hidden), options.chunk_tokens):
            logits = _logits(weight, hidden[chunk], options.vocab_size)
            for block in _blocks(logits):
                rows = slice(chunk.start + block.start, chunk.start + block.stop)
                counted = None if mask is None else mask[rows]
                losses[rows], extra, logits[block] = _losses_and_gradients(
                    logits[block], targets[rows], counted, options
                )
                total += losses[rows].sum() + extra
            grad_hidden[chunk] = logits @ weight
            if grad_weight is not None:
                grad_weight += logits.T @ hidden[chunk]
        ctx.save_for_backward(grad_weight, grad_hidden)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(losses)
        ctx.set_materialize_grads(False)
        return total, losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_sum = grads[0]
        if grad_sum is None:
            return (None,) * 5
        grad_weight, grad_hidden = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_sum).to(ctx.weight_dtype)
        return grad_weight, grad_hidden * grad_sum, None, None, None


def _log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities in fp32 at least."""
    return logits.log_softmax(dim=-1, dtype=_wide(logits))


def _losses(logs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropies [N] of log-probabilities [N, V]; 0 where the mask is."""
    losses = -logs.gather(1, targets[:, None]).squeeze(1)
    return losses if mask is None else losses * mask


def _losses_and_gradients(
    logits: Tensor, targets: Tensor, mask: Tensor | None, options: LossOptions
) -> tuple[Tensor, Tensor | float, Tensor]:
    """Cross-entropies [N], what is minimised beside their sum, and gradients of both, [N, V]."""
    logs = _log_softmax(logits)
    losses = _losses(logs, targets, mask)
    extra, z_gradient = _regularise(logits, logs, losses, mask, options)
    return losses, extra, _grad_logits(logs, targets, mask, z_gradient, options)


def _regularise(
    logits: Tensor, logs: Tensor, losses: Tensor, mask: Tensor | None, options: LossOptions
) -> tuple[Tensor | float, Tensor | None]:
    """What label smoothing and z-loss add to the sum, and the latter's factor on the softmax."""
    share, weight = options.label_smoothing, options.z_loss
    extra: Tensor | float = 0.0
    if share:
        even = -logs[:, : options.vocab_size].mean(1)
        extra = extra + share * ((even if mask is None else even * mask) - losses).sum()
    if not weight:
        return extra, None
    log_z = logits[:, 0].to(logs.dtype) - logs[:, 0]
    squares = log_z.square()
    extra = extra + weight * (squares if mask is None else squares * mask).sum()
    return extra, 2 * weight * log_z


def _logits(weight: Tensor, hidden: Tensor, vocab_size: int) -> Tensor:
    logits = F.linear(hidden, weight)
    logits[..., vocab_size:] = -torch.inf
    return logits


def _grad_logits(
    logs: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    z_gradient: Tensor | None,
    options: LossOptions,
) -> Tensor:
    """Softmax minus target, in the memory of `logs`."""
    grad = logs.exp_()
    if z_gradient is not None:
        grad.mul_(1 + z_gradient[:, None])
    share = options.label_smoothing
    grad.scatter_add_(1, targets[:, None], grad.new_full((len(grad), 1), share - 1.0))
    if share:
        grad[:, : options.vocab_size] -= share / options.vocab_size
    return grad if mask is None else grad.mul_(mask[:, None])


def _wide(tensor: Tensor) -> torch.dtype:
    """What sums are kept in: fp32, or float64 where the model itself computes in it."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunks(num_rows: int, size: int) -> Iterator[slice]:
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Rows of logits [N, V] to pass over at a time: as many as the processor's cache holds."""
    rows = len(logits)
    if logits.device.type == "cpu":
        rows = max(1, CACHED_LOGITS // logits.shape[1])
    return _chunks(len(logits), rows)
