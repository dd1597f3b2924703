"""Where and in which type an engine computes."""

import os

import torch

from glm_dist.engine.settings import EngineSettings
from glm_dist.errors import ConfigError

KEPT_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}
"""Environment of a process that computes on the processor, read when it starts: glibc keeps what
tensors free for the next step. It would give large pieces back to the system, and the next step
would fetch every page of them anew: with 110 million parameters 300,000 pages, a tenth of the step.
"""


def choose_device() -> torch.device:
    """This process's GPU if it sees one, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def choose_dtype(settings: EngineSettings, device: torch.device) -> torch.dtype:
    """The compute type; `auto` takes bfloat16 only where the hardware multiplies it.

    Raises:
        ConfigError: when bfloat16 is asked for on a GPU without it.
    """
    if settings.dtype in ("float16", "float32", "float64"):
        return getattr(torch, settings.dtype)
    if device.type != "cuda":
        wanted = settings.dtype == "bfloat16" or _processor_has_bfloat16()
        return torch.bfloat16 if wanted else torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if settings.dtype == "auto":
        return torch.float32
    raise ConfigError(
        f"engine.dtype: got bfloat16, which {torch.cuda.get_device_name(device)} does not compute; "
        f"set engine.dtype to float32 or auto"
    )


def kept_memory() -> dict[str, str]:
    """`KEPT_MEMORY`; what the user has set there wins."""
    return {name: os.environ.get(name, value) for name, value in KEPT_MEMORY.items()}


def use_deterministic_kernels() -> None:
    """Let torch use only kernels that give the same bits every time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def _processor_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_tile", "amx_bf16", "avx512_bf16"))
