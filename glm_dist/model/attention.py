"""How a forward pass looks at its keys: one function for all layers, made once.

It stands apart because the kernel depends on the device, the mask and the settings, and no layer
should know: a layer calls `attend(query, key, value)`, whatever is behind it.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from glm_dist.model.settings import ModelSettings
from glm_dist.objective.visibility import dense_mask, flex_mask_mod, visible

logger = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries [B, H, Sq, D], keys and values [B, H or a divisor of it, Sk, D] to outputs [B, H, Sq, D].

Where there are fewer key than query heads, each serves as many neighbouring query heads."""

MaskMod = Callable[..., Tensor]
"""Indices of batch, head, query and key to whether the query sees the key."""

FLEX_BLOCK_TOKENS = 128  # side of the blocks that flex attention skips whole
TILE_TOKENS = 128  # queries of a tile on the processor
TILED_SHARE = 0.8  # of all pairs of a row that tiles may compute at most, to be worth their calls


def build_attend(
    settings: ModelSettings,
    segment_ids: Tensor,
    prefix_ends: Tensor,
    training: bool,
    num_common: int = 0,
) -> Attend:
    """Attention over packed rows [B, S] by the kernel that the settings and the device allow.

    The last `num_common` keys belong to no token and are seen by all.
    """
    obstacle = _flex_obstacle(settings, segment_ids, training)
    if settings.attention == "flex" and obstacle:
        _warn_once(f"model.attention is flex, but {obstacle}; sdpa is used instead")
    if settings.attention != "sdpa" and not obstacle:
        return _flex_attend(segment_ids, prefix_ends, num_common)
    dropout = settings.attention_dropout if training else 0.0
    tiles = [] if num_common else _plan_tiles(segment_ids, prefix_ends)
    if tiles:
        return _tiled_attend(segment_ids, prefix_ends, tiles, dropout)
    mask = F.pad(dense_mask(segment_ids, prefix_ends), (0, num_common), value=True)
    return dense_attend(mask[:, None], dropout)


def dense_attend(mask: Tensor | None, dropout: float = 0.0) -> Attend:
    """Scaled-dot-product attention under a bool mask that broadcasts to [B, H, Sq, Sk]; None: all.

    A query must see at least one key.
    """
    biases: dict[torch.dtype, Tensor | None] = {}

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # torch turns a bool mask into a bias in every call; here all layers share one.
        if query.dtype not in biases:
            biases[query.dtype] = None if mask is None else _bias(mask, query.dtype)
        bias = biases[query.dtype]
        key, value = _share_heads(key, query), _share_heads(value, query)
        if bias is not None and dropout == 0 and _is_plain_faster(query, key):
            return _plain_attention(query, key, value, bias)
        return F.scaled_dot_product_attention(query, key, value, bias, dropout)

    return attend


class _Tile(NamedTuple):
    """Neighbouring queries of one row, and the run of keys that holds all they see."""

    row: int
    queries: slice
    keys: slice

    @property
    def num_pairs(self) -> int:
        """Scores that are computed."""
        return (self.queries.stop - self.queries.start) * (self.keys.stop - self.keys.start)


def _plan_tiles(segment_ids: Tensor, prefix_ends: Tensor) -> list[_Tile]:
    """Tiles of rows [B, S] in their order; empty where tiles would not pay.

    They pay where most pairs of a row do not see each other, and where the host knows the ids.
    """
    rows, length = segment_ids.shape
    if segment_ids.device.type != "cpu" or length <= TILE_TOKENS:
        return []
    index = torch.arange(length).expand(rows, length)
    is_first = torch.ones(rows, length, dtype=torch.bool)
    is_first[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    firsts = torch.where(is_first, index, 0).cummax(1).values[:, ::TILE_TOKENS]
    ends = torch.maximum(index + 1, prefix_ends).split(TILE_TOKENS, dim=1)
    lasts = torch.stack([part.amax(1) for part in ends], dim=1)
    tiles = [
        _Tile(row, slice(start, min(start + TILE_TOKENS, length)), slice(*keys))
        for row, ranges in enumerate(torch.stack([firsts, lasts], dim=-1).tolist())
        for start, keys in zip(range(0, length, TILE_TOKENS), ranges, strict=True)
    ]
    num_pairs = sum(tile.num_pairs for tile in tiles)
    return tiles if num_pairs <= TILED_SHARE * rows * length**2 else []


def _tiled_attend(
    segment_ids: Tensor, prefix_ends: Tensor, tiles: list[_Tile], dropout: float
) -> Attend:
    """Attention tile by tile, so that a packed row does not pay for what its samples cannot see.

    The scores of a tile also stay in the processor's cache, which those of a batch do not.
    """
    kernels = [dense_attend(_tile_mask(tile, segment_ids, prefix_ends), dropout) for tile in tiles]
    per_row = len(tiles) // len(segment_ids)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = key.split(1), value.split(1)
        queries = [part for row in query.split(1) for part in row.split(TILE_TOKENS, dim=2)]
        mixed = [
            kernel(part, keys[row][:, :, seen], values[row][:, :, seen])
            for kernel, part, (row, _, seen) in zip(kernels, queries, tiles, strict=True)
        ]
        rows = [mixed[start : start + per_row] for start in range(0, len(mixed), per_row)]
        return torch.cat([torch.cat(row, dim=2) for row in rows])

    return attend


def _tile_mask(tile: _Tile, segment_ids: Tensor, prefix_ends: Tensor) -> Tensor:
    """Queries of the tile by its keys, bool."""
    row, queries, keys = tile
    index = torch.arange(segment_ids.shape[1])
    return visible(
        index[queries, None],
        index[keys],
        segment_ids[row, queries, None],
        segment_ids[row, keys],
        prefix_ends[row, queries, None],
    )


def _share_heads(states: Tensor, query: Tensor) -> Tensor:
    """Keys or values repeated for each query head that they serve."""
    times = query.shape[1] // states.shape[1]
    return states if times == 1 else states.repeat_interleave(times, dim=1)


def _is_plain_faster(query: Tensor, key: Tensor) -> bool:
    """Whether torch's fused CPU kernel is behind two matrix products.

    Its backward pass in bf16 is: measured with torch 2.13 on an EPYC with avx512_bf16, rows of 128
    took 60 ms fused and 18 ms plain, forward and backward; at 512 they draw level.
    """
    is_training = query.requires_grad and torch.is_grad_enabled()
    on_cpu = query.device.type == "cpu"
    return on_cpu and is_training and query.dtype == torch.bfloat16 and key.shape[2] <= 512


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    batch, heads, length, size = query.shape
    bias = bias.expand(batch, heads, length, key.shape[2]).flatten(0, 1)
    transposed = key.flatten(0, 1).transpose(1, 2)
    scores = torch.baddbmm(bias, query.flatten(0, 1), transposed, alpha=size**-0.5)
    return torch.bmm(scores.softmax(-1), value.flatten(0, 1)).view(query.shape)


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, float("-inf")
    )


def _flex_attend(segment_ids: Tensor, prefix_ends: Tensor, num_common: int) -> Attend:
    rows, length = segment_ids.shape
    padding = -num_common % FLEX_BLOCK_TOKENS
    on_cuda = segment_ids.is_cuda
    create_block_mask, flex_attention = _flex_functions(compiled=on_cuda)
    block_mask = create_block_mask(
        _with_common(flex_mask_mod(segment_ids, prefix_ends), length, num_common),
        B=rows,
        H=None,
        Q_LEN=length,
        KV_LEN=length + num_common + padding,
        device=segment_ids.device,
        BLOCK_SIZE=FLEX_BLOCK_TOKENS,
    )
    flex = functools.partial(flex_attention, block_mask=block_mask, enable_gqa=True)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if padding:
            key, value = (F.pad(states, (0, 0, 0, padding)) for states in (key, value))
        return flex(query, key, value)

    return attend


def _with_common(mask_mod: MaskMod, length: int, num_common: int) -> MaskMod:
    """The mask of `length` tokens, with `num_common` keys behind them that all see."""
    if not num_common:
        return mask_mod

    def with_common(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_token = key < length
        seen = mask_mod(batch, head, query, torch.where(is_token, key, 0))
        return torch.where(is_token, seen, key < length + num_common)

    return with_common


@functools.cache
def _flex_functions(compiled: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`create_block_mask` and `flex_attention`; compiled they hold no dense matrix."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if not compiled:
        return create_block_mask, flex_attention
    return torch.compile(create_block_mask), torch.compile(flex_attention)


def _flex_obstacle(settings: ModelSettings, segment_ids: Tensor, training: bool) -> str | None:
    """Why flex attention cannot be used here, or None."""
    length = segment_ids.shape[-1]
    if not segment_ids.is_cuda and (settings.attention == "auto" or torch.is_grad_enabled()):
        return "flex attention is trained on CUDA only"
    if length % FLEX_BLOCK_TOKENS:
        return f"rows of {length} tokens are not a multiple of {FLEX_BLOCK_TOKENS}"
    if settings.head_size < 16:
        return f"heads of {settings.head_size} are narrower than the kernel's 16"
    if training and settings.attention_dropout > 0:
        return f"attention_dropout is {settings.attention_dropout} and flex attention has none"
    return None


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
