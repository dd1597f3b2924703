"""Bytes a rank needs, by the formulae of mixed precision with Adam, and bytes it took."""

import resource
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

MASTER_AND_MOMENTS = 12  # fp32 weight and two fp32 moments
FP32 = 4


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank by use."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of them; the framework's own memory comes on top."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def state_bytes(
    num_parameters: int, num_trained: int, bytes_per_weight: int, zero_stage: int, world_size: int
) -> tuple[float, float, float]:
    """Bytes of weights, gradients and optimizer state: what a stage shards is divided by the ranks.

    Gradients and optimizer state are those of the `num_trained` parameters alone.

    Stage 1 shards the optimizer state, 2 also the gradients, 3 also the weights (Rajbhandari et
    al. 2020). In fp32 the weights are their own master copy.
    """
    optimizer = num_trained * (MASTER_AND_MOMENTS if bytes_per_weight < FP32 else 2 * FP32)
    parts = [num_parameters * bytes_per_weight, num_trained * FP32, optimizer]
    from_stage = (3, 2, 1)
    weights, gradients, moments = (
        part / (world_size if zero_stage >= stage else 1)
        for part, stage in zip(parts, from_stage, strict=True)
    )
    return weights, gradients, moments


def activation_bytes(
    tokens: int, hidden_size: int, num_layers: int, bytes_per_value: int, *, recompute: bool
) -> float:
    """Bytes kept for the backward pass: about 17 values of the hidden size a token and layer.

    Korthikanti et al. 2022 count 34 bytes in 16 bit without attention scores, which fused kernels
    do not keep. With recomputation only each layer's input stays.
    """
    values = 1 if recompute else 17
    return float(tokens * hidden_size * num_layers * values * bytes_per_value)


def peak_bytes(device: torch.device) -> int:
    """The most this process has held so far: on its GPU, or resident where it trains on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
    # Not `getrusage`: Linux lets a new program inherit that peak from the one that started it.
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def available_bytes(device: torch.device) -> int:
    """What this process could still take, of its GPU or of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
