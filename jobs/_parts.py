"""The model's loss and attention against plain versions, each in a process of its own."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from glm_dist.config import Settings
from glm_dist.engine import EngineSettings
from glm_dist.engine.device import choose_device, choose_dtype
from glm_dist.metrics.memory import peak_bytes
from glm_dist.model import ModelSettings
from glm_dist.model.attention import build_attend
from glm_dist.model.loss import LossOptions, tied_cross_entropy
from glm_dist.objective import dense_mask


class PartsSettings(Settings):
    """What is measured, and on how many threads."""

    hidden_size: int = Field(768, ge=64)
    """Width of the model."""
    num_heads: int = Field(12, ge=1)
    """Attention heads."""
    vocab_size: int = Field(32_000, ge=2)
    """Columns of the logits."""
    num_rows: int = Field(8, ge=1)
    """Rows of a batch."""
    sequence_length: int = Field(1024, ge=256)
    """Tokens of a row."""
    samples_per_row: int = Field(8, ge=2)
    """Samples that a packed row holds, of unequal lengths; the first half of each is Part A."""
    num_threads: int = Field(1, ge=1)
    """Threads of torch on the processor."""
    num_repeats: int = Field(10, ge=3)
    """Measurements, of which the median counts; one more warms up."""
    seed: int = 0
    """Seed of values and lengths."""


@dataclass(frozen=True)
class Cost:
    """Of one forward and backward pass."""

    seconds: float
    peak_bytes: int
    """What the process held at most, over what it held before."""


Inputs = tuple[Tensor, ...]
Step = Callable[[], Tensor]


def plain_loss(settings: PartsSettings) -> Step:
    """All logits at once, in fp32 for the loss."""
    hidden, weight, targets = _loss_inputs(settings)
    return lambda: F.cross_entropy(
        F.linear(hidden, weight).flatten(0, 1).float(), targets.flatten(), reduction="sum"
    )


def chunked_loss(settings: PartsSettings) -> Step:
    """The model's own."""
    hidden, weight, targets = _loss_inputs(settings)
    mask = torch.ones_like(targets)
    options = LossOptions(settings.vocab_size)
    return lambda: tied_cross_entropy(weight, hidden, targets, mask, None, options=options).loss_sum


def plain_attention(settings: PartsSettings, causal: bool) -> Step:
    """Torch's scaled-dot-product attention under a mask of all pairs."""
    query, key, value = _attention_inputs(settings)
    mask = dense_mask(*_packed(settings, causal))[:, None]
    return lambda: F.scaled_dot_product_attention(query, key, value, mask).sum()


def own_attention(settings: PartsSettings, causal: bool, kernel: str) -> Step:
    """The model's own, by the kernel that is named."""
    query, key, value = _attention_inputs(settings)
    model = ModelSettings(
        preset=None,
        hidden_size=settings.hidden_size,
        num_heads=settings.num_heads,
        attention=kernel,
    )
    segments, ends = _packed(settings, causal)
    return lambda: build_attend(model, segments, ends, True)(query, key, value).sum()


def parts() -> dict[str, dict[str, Callable[[PartsSettings], Step]]]:
    """Contestants by part; the plain version comes first."""
    found: dict[str, dict[str, Callable[[PartsSettings], Step]]] = {
        "cross-entropy": {"plain": plain_loss, "chunked": chunked_loss}
    }
    for name, causal in (("packed prefix attention", False), ("packed causal attention", True)):
        found[name] = {
            "plain": partial(plain_attention, causal=causal),
            "sdpa, by tiles": partial(own_attention, causal=causal, kernel="sdpa"),
        }
        if torch.cuda.is_available():
            found[name]["flex"] = partial(own_attention, causal=causal, kernel="flex")
    return found


def cost_of(build: Callable[[PartsSettings], Step], settings: PartsSettings) -> dict[str, Any]:
    """Measured in a process of its own, whose peak is this contestant's."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return asdict(pool.submit(_measure, build, settings).result())


def describe_parts(settings: PartsSettings, costs: dict[str, dict[str, Any]]) -> str:
    """The page."""
    rows = "\n".join(
        f"| {part} | {kind} | {cost['seconds'] * 1e3:,.1f} "
        f"| {versions['plain']['seconds'] / cost['seconds']:.2f} "
        f"| {cost['peak_bytes'] / 2**20:,.0f} |"
        for part, versions in costs.items()
        for kind, cost in versions.items()
    )
    dtype = str(choose_dtype(EngineSettings(), choose_device())).removeprefix("torch.")
    return (
        f"# Loss and attention\n\nForward and backward in {dtype} on {choose_device()}, "
        f"{settings.num_threads} torch thread(s): {settings.num_rows} rows of "
        f"{settings.sequence_length} tokens, width {settings.hidden_size}, {settings.num_heads} "
        f"heads, {settings.vocab_size:,} logits; packed rows hold {settings.samples_per_row} "
        "samples of unequal lengths. *Plain* holds all logits, and all pairs of a row. Each in a "
        "process of its own in one run; the peak is what it held over what it held before. Flex "
        "attention trains on CUDA only and is measured where there is a device.\n\n"
        "| | | milliseconds | faster than plain by | peak, MiB |\n|---|---|---|---|---|\n"
        f"{rows}\n"
    )


def _measure(build: Callable[[PartsSettings], Step], settings: PartsSettings) -> Cost:
    torch.set_num_threads(settings.num_threads)
    device = choose_device()
    step = build(settings)
    before = _held_bytes(device)
    seconds = []
    for _ in range(settings.num_repeats + 1):
        start = time.perf_counter()
        step().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return Cost(median(seconds[1:]), peak_bytes(device) - before)


def _held_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    return psutil.Process().memory_info().rss


def _loss_inputs(settings: PartsSettings) -> Inputs:
    rows, length, hidden = settings.num_rows, settings.sequence_length, settings.hidden_size
    states = _random(settings, rows, length, hidden).requires_grad_()
    weight = _random(settings, settings.vocab_size, hidden).requires_grad_()
    generator = torch.Generator().manual_seed(settings.seed)
    targets = torch.randint(settings.vocab_size, (rows, length), generator=generator)
    return states, weight, targets.to(states.device)


def _attention_inputs(settings: PartsSettings) -> Inputs:
    """Queries, keys and values [B, H, S, D], laid out as the fused projection leaves them."""
    heads, rows, length = settings.num_heads, settings.num_rows, settings.sequence_length
    shape = (rows, length, heads, settings.hidden_size // heads)
    return tuple(_random(settings, *shape).transpose(1, 2).requires_grad_() for _ in range(3))


def _packed(settings: PartsSettings, causal: bool) -> tuple[Tensor, Tensor]:
    """Segment ids and prefix ends [B, S] of rows of samples whose lengths are drawn."""
    rng = np.random.default_rng(settings.seed)
    segments = np.zeros((settings.num_rows, settings.sequence_length), dtype=np.int64)
    ends = np.zeros_like(segments)
    for row in range(settings.num_rows):
        inner = np.arange(1, settings.sequence_length)
        cuts = np.sort(rng.choice(inner, settings.samples_per_row - 1, replace=False))
        edges = [0, *cuts.tolist(), settings.sequence_length]
        for number, (start, stop) in enumerate(zip(edges, edges[1:], strict=False), start=1):
            segments[row, start:stop] = number
            ends[row, start:stop] = 0 if causal else (start + stop) // 2
    device = choose_device()
    return torch.from_numpy(segments).to(device), torch.from_numpy(ends).to(device)


def _random(settings: PartsSettings, *shape: int) -> Tensor:
    device = choose_device()
    generator = torch.Generator().manual_seed(settings.seed)
    dtype = choose_dtype(EngineSettings(), device)
    return (torch.randn(*shape, generator=generator) * 0.5).to(device, dtype)
