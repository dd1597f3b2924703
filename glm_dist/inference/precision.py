"""In which type a model computes, and whether it fits into memory in it.

They stand apart because the answer is wanted before any weight is read.
"""

import torch

from glm_dist.errors import ModelError
from glm_dist.inference.settings import EngineLimits, Precision
from glm_dist.metrics.memory import available_bytes
from glm_dist.model import ModelSettings

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
"""From the largest to the smallest."""
GIB = 2**30


def compute_dtype(precision: Precision, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The type of all that is not int8: activations, keys and values, embeddings and head."""
    if precision == "float32" or (precision == "auto" and stored == torch.float32):
        return torch.float32
    if precision == "auto" and stored == torch.float64:
        return stored
    return torch.bfloat16 if precision == "bfloat16" or has_bfloat16(device) else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_tile", "amx_bf16", "avx512_bf16"))


def engine_bytes(
    settings: ModelSettings, limits: EngineLimits, stored: torch.dtype, device: torch.device
) -> int:
    """The most bytes that an engine holds, which is while it lays its weights out.

    The weights; those of the maps once more where they are laid out anew, as on the processor and
    in int8; keys and values.
    """
    size = compute_dtype(limits.dtype, stored, device).itemsize
    tables = settings.num_parameters - _map_parameters(settings)
    maps = _map_parameters(settings)
    again = maps if limits.dtype == "int8" else maps * size * (device.type == "cpu")
    head = settings.padded_vocab_size * settings.hidden_size * size * (device.type == "cpu")
    blocks = limits.cache_tokens // limits.block_tokens + 1
    token = settings.num_layers * 2 * settings.kv_heads * settings.head_size * size
    return (tables + maps) * size + again + head + blocks * limits.block_tokens * token


def _map_parameters(settings: ModelSettings) -> int:
    """Weights of the linear maps of all layers."""
    hidden, ffn = settings.hidden_size, settings.ffn_hidden_size
    mixed = settings.num_heads * settings.head_size
    inner = 2 * ffn if settings.is_gated else ffn
    return settings.num_layers * hidden * (settings.qkv_size + mixed + inner + ffn)


def check_memory(
    settings: ModelSettings, limits: EngineLimits, stored: torch.dtype, device: torch.device
) -> int:
    """The bytes of an engine, if it fits.

    Raises:
        ModelError: with both numbers, and the largest precision that fits.
    """
    free = available_bytes(device)
    needed = engine_bytes(settings, limits, stored, device)
    if needed <= free:
        return needed
    fitting = (
        precision
        for precision in PRECISIONS
        if engine_bytes(settings, limits.model_copy(update={"dtype": precision}), stored, device)
        <= free
    )
    found = next(fitting, None)
    remedy = (
        "no precision fits: take a smaller model, or lower cache_tokens"
        if found is None
        else f"the largest precision that fits is {found}: set dtype to it, or lower cache_tokens"
    )
    raise ModelError(
        f"dtype {limits.dtype} and cache_tokens {limits.cache_tokens} need {needed / GIB:.1f} GiB "
        f"for weights, keys and values, and {device.type} has {free / GIB:.1f} GiB free; {remedy}"
    )
