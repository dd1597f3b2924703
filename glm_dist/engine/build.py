"""From settings to a running engine."""

import logging
from collections.abc import Callable, Container

import torch
import torch.distributed as dist
from torch import nn

from glm_dist.engine.device import choose_device, choose_dtype, use_deterministic_kernels
from glm_dist.engine.interface import Engine
from glm_dist.engine.settings import EngineSettings
from glm_dist.model import compile_layers

logger = logging.getLogger(__name__)


def build_engine(
    model: Callable[[], nn.Module], settings: EngineSettings, rebuilt: Container[str] = ()
) -> Engine:
    """An engine for the model that `model` builds, over torch's process group if there is one.

    Every rank builds the whole model in fp32 on the host first; rank 0's weights count. Parameters
    that require no gradient are frozen.

    Args:
        model: gives the whole model.
        settings: of the engine.
        rebuilt: names of frozen parameters that `model` gives the same values whenever it is
            called; checkpoints and full weights leave them out.
    """
    if settings.deterministic:
        use_deterministic_kernels()
    device = choose_device()
    dtype = choose_dtype(settings, device)
    if not dist.is_initialized() or dist.get_rank() == 0:
        for warning in settings.warnings():
            logger.warning(warning)
    if settings.backend == "torch":
        from glm_dist.engine.twin import TwinEngine

        return TwinEngine(_build_model(model, settings), settings, device, dtype, rebuilt)
    if not dist.is_initialized():
        _start_group_of_one(device)
    from glm_dist.engine.zero import ZeroEngine

    return ZeroEngine(_build_model(model, settings), settings, device, dtype, rebuilt)


def _build_model(model: Callable[[], nn.Module], settings: EngineSettings) -> nn.Module:
    built = model()
    if settings.compile_layers:
        compile_layers(built)
    return built


def _start_group_of_one(device: torch.device) -> None:
    """DeepSpeed wants a process group even for a single process."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
