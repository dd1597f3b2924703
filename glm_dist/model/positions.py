"""Rotary positions: queries and keys turned by where their tokens stand, before they meet.

It stands apart because it needs no parameters and no layer knows of it: attention that rotates is
attention to the layers all the same.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from glm_dist.model.attention import Attend
from glm_dist.model.settings import ModelSettings


def build_rotary(
    settings: ModelSettings, position_ids: Tensor, block_position_ids: Tensor, dtype: torch.dtype
) -> "Rotary":
    """The rotation of new tokens at these positions [B, S], for states of `dtype`.

    Models of one position turn by the sum of both: it counts on from `[gMASK]` through the answer,
    as in GLM-130B, and it is the plain position where a text has no blocks.
    """
    scale = settings.rotary_scaling
    positions = position_ids if scale == 1 else position_ids / scale
    blocks = block_position_ids if scale == 1 else block_position_ids / scale
    size, base = settings.head_size, settings.rotary_base
    if settings.positions == "rotary_2d":
        return Rotary(angles_2d(positions, blocks, size, base), dtype)
    if settings.positions == "rotary_1d":
        return Rotary(angles_1d(positions + blocks, size, base), dtype)
    return Rotary(angles_half(positions + blocks, size, base), dtype)


class Rotary:
    """A rotation of pairs of elements, of which cosine and sine are kept once for all heads."""

    def __init__(self, angles: Tensor, dtype: torch.dtype) -> None:
        """Args: [B, S, groups, W], where a head is laid out as (groups, 2, W); type of states."""
        self._width = angles.shape[-1]
        cos, sin = angles.cos(), angles.sin()
        self._cos = torch.stack((cos, cos), dim=-2).flatten(-3).to(dtype)[:, None]
        self._sin = torch.stack((-sin, sin), dim=-2).flatten(-3).to(dtype)[:, None]

    def __call__(self, attend: Attend) -> Attend:
        """`attend` on rotated queries and keys."""

        def attend_rotated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(self._rotate(query), self._rotate(key), value)

        return attend_rotated

    def _rotate(self, states: Tensor) -> Tensor:
        """States [B, H, S, D], turned."""
        others = states.unflatten(-1, (-1, 2, self._width)).flip(-2).flatten(-3)
        return torch.addcmul(states * self._cos, others, self._sin)


def angles_2d(positions: Tensor, blocks: Tensor, head_size: int, base: float) -> Tensor:
    """ChatGLM-6B's: half of each head by the position, half by the block position."""
    waves = _frequencies(head_size // 2, base, positions.device)
    return torch.stack((positions, blocks), dim=-1)[..., None] * waves


def angles_1d(positions: Tensor, head_size: int, base: float) -> Tensor:
    """GLM-130B's: element i of a head's first half with element i of its second."""
    return (positions[..., None] * _frequencies(head_size, base, positions.device))[..., None, :]


def angles_half(positions: Tensor, head_size: int, base: float) -> Tensor:
    """GLM-4's: neighbours (0, 1), (2, 3), … of a head's first half; the rest stays."""
    angles = positions[..., None] * _frequencies(head_size // 2, base, positions.device)
    return F.pad(angles, (0, head_size // 4))[..., None]


def _frequencies(size: int, base: float, device: torch.device) -> Tensor:
    """Radians a position for each pair of `size` elements, fp32 [size / 2]."""
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
    return base**-exponents
