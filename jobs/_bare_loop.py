"""The loop somebody would write for one model on one device: what the distributed run is held to.

Same model, rows, dtype, optimizer and clipping as the run it is compared with, fp32 master weights
included; no data pipeline, no sharding, no checkpoints, no metrics but the time.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glm_dist.data.rows import Rows
from glm_dist.train.settings import PretrainSettings
from glm_dist.train.stream import to_batch


def bare_loop(
    model: nn.Module, settings: PretrainSettings, steps: Sequence[Sequence[Rows]]
) -> list[float]:
    """Train the model in its own dtype; seconds of each step, whose micro-batches are built."""
    engine = settings.engine
    weights: list[Tensor] = list(model.parameters())
    device, is_narrow = weights[0].device, weights[0].dtype.itemsize < torch.float32.itemsize
    masters: list[Tensor] = weights
    if is_narrow:
        masters = [nn.Parameter(weight.detach().float()) for weight in weights]
    optimizer = torch.optim.AdamW(
        masters,
        lr=settings.schedule.peak_learning_rate,
        betas=(engine.beta1, engine.beta2),
        eps=engine.eps,
        weight_decay=engine.weight_decay,
        fused=True,
    )
    seconds = []
    for micro_batches in steps:
        start = time.perf_counter()
        loss_tokens = max(1, sum(int(rows["loss_mask"].sum()) for rows in micro_batches))
        for rows in micro_batches:
            (model(*to_batch(rows, device)).loss_sum / loss_tokens).backward()
            if is_narrow:
                accumulate(weights, masters)
        torch.nn.utils.clip_grad_norm_(masters, engine.gradient_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if is_narrow:
            with torch.no_grad():
                torch._foreach_copy_(weights, masters)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def accumulate(weights: Sequence[Tensor], masters: Sequence[Tensor]) -> None:
    """Add narrow gradients to the fp32 ones and forget them."""
    for weight, master in zip(weights, masters, strict=True):
        if weight.grad is not None:
            narrow, weight.grad = weight.grad.float(), None
            master.grad = narrow if master.grad is None else master.grad.add_(narrow)
