"""One linear map as a function of a tile of rows, by device and precision.

They stand apart from the tiles: each lays its weight out once, as the kernel wants it. In int8 the
rows of the weight and of every input have a scale of their own, and products are sums of whole
numbers, so no other row and no order of summing can change them.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Multiply = Callable[[Tensor], Tensor]

PACKED_ROWS = 64
"""Rows that packed weights are laid out for; oneDNN chose the same layout for 4 to 256."""
LARGEST = 127
_SHIFT = 128
_FEWEST_CUDA_ROWS = 32  # cuBLAS multiplies no fewer than 17 rows of int8


def build_product(weight: Tensor, bias: Tensor | None, is_int8: bool) -> Multiply:
    """`weight @ row + bias` for a tile of rows [rows, in]."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if is_int8:
        return _build_int8(weight, bias)
    if not _can_pack(weight):
        return lambda tile: F.linear(tile, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda tile: multiply(tile, packed, bias, "none", [], "")


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    bf16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or bf16


def _build_int8(weight: Tensor, bias: Tensor | None) -> Multiply:
    whole, scales = quantize_rows(weight)
    build = _build_vnni_sums if _has_vnni(weight.device) else _build_sums
    sums = build(whole, scales.squeeze(1))

    def multiply(tile: Tensor) -> Tensor:
        rows, lengths = quantize_rows(tile)
        outputs = sums(rows) * lengths
        return (outputs if bias is None else outputs + bias).to(tile.dtype)

    return multiply


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers of -127 to 127, and fp32 scales [rows, 1] that give the rows back."""
    values = values.float()
    scales = values.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / LARGEST
    return (values / scales).round().to(torch.int8), scales


def _has_vnni(device: torch.device) -> bool:
    """Whether the processor adds products of whole numbers up without cutting them off."""
    capabilities = torch.cpu.get_capabilities()
    has = any(capabilities.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    return device.type == "cpu" and has and torch.backends.mkldnn.is_available()


def _build_vnni_sums(weight: Tensor, scales: Tensor) -> Multiply:
    """Sums of products of whole numbers, scaled by the weight's rows, by oneDNN."""
    multiply = torch.ops.onednn.qlinear_pointwise
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    # Without a sign, since the instruction takes none on that side; the other way is 1,000 times
    # slower on processors without AMX.
    return lambda tile: multiply(
        tile.to(torch.int16).add_(_SHIFT).to(torch.uint8), 1.0, _SHIFT, packed, scales, zeros,
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip


def _build_sums(weight: Tensor, scales: Tensor) -> Multiply:
    transposed = weight.t()

    def multiply(tile: Tensor) -> Tensor:
        padded = F.pad(tile, (0, 0, 0, max(0, _FEWEST_CUDA_ROWS - len(tile))))
        return torch._int_mm(padded, transposed)[: len(tile)].float() * scales

    return multiply
