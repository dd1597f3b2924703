"""Rotary positions: queries and keys turned by where their tokens stand, before they meet.

It stands apart because it needs no parameters and no layer knows of it: attention that rotates is
attention to the layers all the same.
"""

import torch
from torch import Tensor

from glm_dist.model.attention import Attend


class Rotary2D:
    """ChatGLM-6B's rotation: half of each head by the position, half by the block position."""

    def __init__(
        self,
        position_ids: Tensor,
        block_position_ids: Tensor,
        head_size: int,
        base: float,
        dtype: torch.dtype,
    ) -> None:
        """Args: positions [B, S] of the new tokens; head width; base of the wave lengths; dtype."""
        waves = _frequencies(head_size // 2, base, position_ids.device)
        angles = torch.stack((position_ids, block_position_ids), dim=-1)[..., None] * waves
        # Both halves of a half turn by the same angles, [B, 1, S, 2, head size / 4] each.
        self._cos = angles.cos().to(dtype)[:, None]
        self._sin = angles.sin().to(dtype)[:, None]

    def __call__(self, attend: Attend) -> Attend:
        """`attend` on rotated queries and keys."""

        def attend_rotated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(self._rotate(query), self._rotate(key), value)

        return attend_rotated

    def _rotate(self, states: Tensor) -> Tensor:
        """States [B, H, S, D], laid out as (axis, half, D / 4)."""
        first, second = states.unflatten(-1, (2, 2, -1)).unbind(-2)
        turned = (
            first * self._cos - second * self._sin,
            second * self._cos + first * self._sin,
        )
        return torch.stack(turned, dim=-2).flatten(-3)


def _frequencies(size: int, base: float, device: torch.device) -> Tensor:
    """Radians a position for each pair of `size` elements, fp32 [size / 2]."""
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
    return base**-exponents
