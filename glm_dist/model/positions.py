"""Rotary positions: queries and keys turned by where their tokens stand, before they meet.

It stands apart because it needs no parameters and no layer knows of it: attention that rotates is
attention to the layers all the same.
"""

import torch
from torch import Tensor

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
        return Rotary2D(positions, blocks, size, base, dtype)
    if settings.positions == "rotary_1d":
        return Rotary1D(positions + blocks, size, base, dtype)
    return RotaryHalf(positions + blocks, size, base, dtype)


class Rotary:
    """A rotation by angles [B, S, …], of which cosine and sine are kept once for all heads."""

    def __init__(self, angles: Tensor, dtype: torch.dtype) -> None:
        self._cos = angles.cos().to(dtype)[:, None]
        self._sin = angles.sin().to(dtype)[:, None]

    def __call__(self, attend: Attend) -> Attend:
        """`attend` on rotated queries and keys."""

        def attend_rotated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(self._rotate(query), self._rotate(key), value)

        return attend_rotated

    def _rotate(self, states: Tensor) -> Tensor:
        """States [B, H, S, D], turned."""
        raise NotImplementedError

    def _turn(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Both elements of each pair, turned."""
        return (
            first * self._cos - second * self._sin,
            second * self._cos + first * self._sin,
        )


class Rotary2D(Rotary):
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
        # Both halves of a half turn by the same angles, [B, S, 2, head size / 4].
        both = torch.stack((position_ids, block_position_ids), dim=-1)[..., None]
        super().__init__(both * waves, dtype)

    def _rotate(self, states: Tensor) -> Tensor:
        """States laid out as (axis, half, D / 4)."""
        first, second = states.unflatten(-1, (2, 2, -1)).unbind(-2)
        return torch.stack(self._turn(first, second), dim=-2).flatten(-3)


class Rotary1D(Rotary):
    """GLM-130B's rotation: element i of a head's first half with element i of its second."""

    def __init__(
        self, position_ids: Tensor, head_size: int, base: float, dtype: torch.dtype
    ) -> None:
        waves = _frequencies(head_size, base, position_ids.device)
        super().__init__(position_ids[..., None] * waves, dtype)

    def _rotate(self, states: Tensor) -> Tensor:
        return torch.cat(self._turn(*states.chunk(2, dim=-1)), dim=-1)


class RotaryHalf(Rotary):
    """GLM-4's rotation: neighbours (0, 1), (2, 3), … of a head's first half; the rest stays."""

    def __init__(
        self, position_ids: Tensor, head_size: int, base: float, dtype: torch.dtype
    ) -> None:
        waves = _frequencies(head_size // 2, base, position_ids.device)
        super().__init__(position_ids[..., None] * waves, dtype)

    def _rotate(self, states: Tensor) -> Tensor:
        turning, resting = states.chunk(2, dim=-1)
        first, second = turning.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack(self._turn(first, second), dim=-1).flatten(-2)
        return torch.cat((turned, resting), dim=-1)


def _frequencies(size: int, base: float, device: torch.device) -> Tensor:
    """Radians a position for each pair of `size` elements, fp32 [size / 2]."""
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
    return base**-exponents
