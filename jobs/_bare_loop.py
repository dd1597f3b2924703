"""The loop somebody would write for one model on one device: what the distributed run is held to.

Same model, rows, dtype, optimizer and clipping as the run it is compared with, fp32 master weights
included; no data pipeline, no sharding, no checkpoints, no metrics but the time.
"""

import time
from collections.abc import Sequence

import torch

from glm_dist.data.rows import Rows
from glm_dist.engine.device import choose_dtype
from glm_dist.model import build_model
from glm_dist.train.settings import PretrainSettings
from glm_dist.train.stream import to_batch


def bare_loop(
    settings: PretrainSettings, steps: Sequence[Sequence[Rows]], device: torch.device
) -> list[float]:
    """Seconds of each optimizer step; `steps` holds each step's micro-batches, built already."""
    engine = settings.engine
    dtype = choose_dtype(engine, device)
    model = build_model(settings.model, device).to(dtype)
    weights: list[torch.Tensor] = list(model.parameters())
    is_narrow = dtype != torch.float32
    masters: list[torch.Tensor] = (
        [torch.nn.Parameter(weight.detach().float()) for weight in weights]
        if is_narrow
        else weights
    )
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
            output = model(*to_batch(rows, device))
            (output.loss_sum / loss_tokens).backward()
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


def accumulate(weights: list[torch.Tensor], masters: list[torch.Tensor]) -> None:
    """Add narrow gradients to the fp32 ones and forget them."""
    for weight, master in zip(weights, masters, strict=True):
        if weight.grad is not None:
            gradient = weight.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        weight.grad = None
