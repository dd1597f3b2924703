"""Keys and values in blocks, and attention over them in shapes that only a text's own length sets.

It stands apart from the scheduler, which knows blocks by number, and from the layers, which attend
through it without knowing that there are blocks. Texts are grouped by their padded length, so the
kernel that a row meets never depends on how long its neighbours are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from glm_dist.model import ModelSettings
from glm_dist.model.attention import Attend

KEY_UNIT = 64
"""Keys are padded to a multiple of it, so blocks must divide it."""
QUERY_TILE = 64
"""Queries of a causal prefill that attend at once, counted from the beginning of the text."""


def padded_length(num_tokens: int, unit: int = KEY_UNIT) -> int:
    """The length that many tokens are padded to: at most a quarter more, past four units."""
    step = max(unit, (1 << (num_tokens.bit_length() - 1)) // 4)
    return -(-num_tokens // step) * step


@dataclass(frozen=True)
class Piece:
    """Queries of one text that stand side by side in the pass, and the keys that they see."""

    first_row: int
    num_rows: int
    """Queries; those of a piece are padded to `padded_rows`."""
    padded_rows: int
    blocks: Sequence[int]
    """Of the text, prompt first."""
    num_prompt_keys: int
    """Keys of the prompt that the first query sees."""
    answer_start: int = 0
    """Index among the keys at which the answer's begin."""
    num_answer_keys: int = 0
    is_causal: bool = False
    """Whether each query sees one key more than the one before it."""

    @property
    def padded_keys(self) -> int:
        """The length that its keys are padded to."""
        if self.num_answer_keys:
            return padded_length(self.answer_start + self.num_answer_keys)
        return padded_length(self.num_prompt_keys + (self.num_rows - 1) * self.is_causal)


@dataclass(frozen=True)
class _Group:
    """Pieces of one shape, as index tensors that all layers share."""

    rows: Tensor | slice
    """[B x padded rows] rows of the pass that are its queries; padding repeats the first. A slice
    where they stand side by side."""
    real: Tensor | None
    """Those of `rows` that are no padding, or None where all are real."""
    table: Tensor
    """[B x blocks] the blocks of the keys; padding is block 0."""
    bias: Tensor
    """[B, 1, 1 or padded rows, keys]: 0 where a key is seen, else -inf."""
    num_pieces: int

    def take(self, states: Tensor) -> Tensor:
        """Its queries [B x padded rows, ...] among the rows of the pass."""
        if isinstance(self.rows, slice):
            return states[self.rows]
        return states.index_select(0, self.rows)

    def put(self, outputs: Tensor, mixed: Tensor) -> None:
        """Write what its queries made to the rows of the pass."""
        if isinstance(self.rows, slice):
            mixed[self.rows] = outputs
        elif self.real is None:
            mixed.index_copy_(0, self.rows, outputs)
        else:
            places = self.rows.index_select(0, self.real)
            mixed.index_copy_(0, places, outputs.index_select(0, self.real))


class PagedCache:
    """Keys and values of all texts, [blocks, block tokens, 2, key heads, D] for each layer."""

    def __init__(
        self,
        settings: ModelSettings,
        *,
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_blocks + 1, block_tokens, 2, settings.kv_heads, settings.head_size)
        # Zeros, since a masked key still takes part: times nothing, so it must be finite.
        self.layers = [
            torch.zeros(shape, dtype=dtype, device=device) for _ in range(settings.num_layers)
        ]
        self.block_tokens, self.device, self.dtype = block_tokens, device, dtype
        self._gathered = self.layers[0].new_empty(0, *shape[1:])

    def gather(self, pages: Tensor, table: Tensor) -> Tensor:
        """The blocks of a layer that a table names, until the next call."""
        if len(self._gathered) < len(table):
            self._gathered = self._gathered.new_empty(2 * len(table), *self._gathered.shape[1:])
        return torch.index_select(pages, 0, table, out=self._gathered[: len(table)])

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Put keys and values [1, key heads, S, D] into slots [S] of a layer, which comes back."""
        pages = self.layers[layer]
        flat = pages.flatten(0, 1)
        flat[:, 0].index_copy_(0, slots, key[0].transpose(0, 1))
        flat[:, 1].index_copy_(0, slots, value[0].transpose(0, 1))
        return pages

    def wipe(self, blocks: Sequence[int]) -> None:
        """Zeros where a broken text may have left numbers that are not finite."""
        for pages in self.layers:
            pages[list(blocks)] = 0

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Blocks as they are to others: pairs of from and to."""
        if pairs:
            sources, targets = (list(blocks) for blocks in zip(*pairs, strict=True))
            for pages in self.layers:
                pages[targets] = pages[sources]

    def slots(self, blocks: Sequence[int], places: np.ndarray) -> np.ndarray:
        """Where in a layer's slots the tokens at `places` of a text with these blocks stand."""
        return np.asarray(blocks)[places // self.block_tokens] * self.block_tokens + (
            places % self.block_tokens
        )


class PagedPass:
    """One forward pass over rows of several texts: writes their keys, then attends."""

    def __init__(
        self,
        cache: PagedCache,
        slots: np.ndarray,
        pieces: Sequence[Piece],
        *,
        prefix: Tensor | None = None,
        skips_last: bool = False,
    ) -> None:
        """Begin a pass.

        Args:
            cache: of all texts.
            slots: one for each row, 0 for padding.
            pieces: the queries.
            prefix: trained keys and values [L, 2, key heads, P, D] that all queries see.
            skips_last: whether only keys and values are wanted.
        """
        self._cache = cache
        self._slots = torch.from_numpy(slots).to(cache.device)
        self._groups = _build_groups(cache, pieces)
        self._prefix, self._skips_last = prefix, skips_last

    def advance(self, num_tokens: int) -> None:
        """Nothing: slots were given for all rows."""

    def attend(self, layer: int, attend: Attend) -> Attend:
        """Attention of `layer`; what `attend` would do is of no concern."""
        prefix = None if self._prefix is None else self._prefix[layer]
        is_skipped = self._skips_last and layer == len(self._cache.layers) - 1

        def attend_pages(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            pages = self._cache.write(layer, self._slots, key, value)
            return query if is_skipped else self._mix(pages, query, prefix)

        return attend_pages

    def _mix(self, pages: Tensor, query: Tensor, prefix: Tensor | None) -> Tensor:
        """Mixed values of queries [1, H, S, D], in that shape."""
        rows = query[0].transpose(0, 1)
        mixed = rows.new_zeros(rows.shape)
        for group in self._groups:
            blocks = self._cache.gather(pages, group.table)
            group.put(_attend_group(blocks, group.take(rows), group, prefix), mixed)
        return mixed.transpose(0, 1)[None]


def _attend_group(blocks: Tensor, queries: Tensor, group: _Group, prefix: Tensor | None) -> Tensor:
    """Queries [B x Sq, H, D] to outputs of that shape."""
    count, (total, heads, size) = group.num_pieces, queries.shape
    kv_heads, num_queries = blocks.shape[3], total // count
    shared = heads // kv_heads
    keys, values = blocks.view(count, -1, 2, kv_heads, size).transpose(1, 3).unbind(2)
    # Query heads that share a key head become queries of that head.
    split = queries.view(count, num_queries, kv_heads, shared, size).permute(0, 2, 3, 1, 4)
    bias = group.bias
    if prefix is not None:
        keys, values = (
            torch.cat((own, more.expand(count, -1, -1, -1)), dim=2)
            for own, more in ((keys, prefix[0]), (values, prefix[1]))
        )
        bias = F.pad(bias, (0, prefix.shape[2]))
    if bias.shape[2] > 1 and shared > 1:
        bias = bias.repeat(1, 1, shared, 1)
    mixed = F.scaled_dot_product_attention(split.flatten(2, 3), keys, values, bias)
    return mixed.unflatten(2, (shared, num_queries)).permute(0, 3, 1, 2, 4).reshape(queries.shape)


def _build_groups(cache: PagedCache, pieces: Sequence[Piece]) -> list[_Group]:
    shapes: dict[tuple[int, int, bool], list[Piece]] = {}
    for piece in pieces:
        shape = (piece.padded_rows, piece.padded_keys, piece.is_causal)
        shapes.setdefault(shape, []).append(piece)
    return [_build_group(cache, group, *shape) for shape, group in shapes.items()]


def _build_group(
    cache: PagedCache, pieces: list[Piece], padded_rows: int, num_keys: int, is_causal: bool
) -> _Group:
    place = np.arange(num_keys)
    counts = np.array([piece.num_rows for piece in pieces])[:, None]
    offsets = np.arange(padded_rows)[None]
    is_real = offsets < counts
    firsts = np.array([piece.first_row for piece in pieces])[:, None]
    table = np.zeros((len(pieces), num_keys // cache.block_tokens), dtype=np.int64)
    for row, piece in enumerate(pieces):
        blocks = piece.blocks[: table.shape[1]]
        table[row, : len(blocks)] = blocks
    prompt = np.array([piece.num_prompt_keys for piece in pieces])[:, None, None]
    start = np.array([piece.answer_start for piece in pieces])[:, None, None]
    answer = np.array([piece.num_answer_keys for piece in pieces])[:, None, None]
    growth = offsets[:, :, None] if is_causal else 0
    seen = (place < prompt + growth) | ((place >= start) & (place < start + answer))
    bias = torch.zeros(seen.shape, dtype=cache.dtype).masked_fill_(
        torch.from_numpy(~seen), -torch.inf
    )
    return _Group(
        rows=_as_run((firsts + np.where(is_real, offsets, 0)).ravel(), cache.device),
        real=None
        if is_real.all()
        else torch.from_numpy(np.flatnonzero(is_real.ravel())).to(cache.device),
        table=torch.from_numpy(table.ravel()).to(cache.device),
        bias=bias[:, None].to(cache.device),
        num_pieces=len(pieces),
    )


def _as_run(rows: np.ndarray, device: torch.device) -> Tensor | slice:
    first, last = int(rows[0]), int(rows[-1])
    if np.array_equal(rows, np.arange(first, last + 1)):
        return slice(first, last + 1)
    return torch.from_numpy(rows).to(device)
