"""The model's passes: prompts into the cache, and tokens of answers to logits.

It stands apart as the one place that lays texts side by side for the model. Both passes have
shapes that round alike and that padding fills up, so what a token computes does not depend on what
lies beside it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from glm_dist.inference.adapters import Adapters
from glm_dist.inference.alike import alike_sizes
from glm_dist.inference.linear import tiled_copy
from glm_dist.inference.paged import QUERY_TILE, PagedCache, PagedPass, Piece, padded_length
from glm_dist.inference.precision import compute_dtype
from glm_dist.inference.scheduler import Chunk, Row
from glm_dist.inference.settings import EngineLimits
from glm_dist.inference.tiles import RowTiles
from glm_dist.model import GLM
from glm_dist.model.cache import Past

if TYPE_CHECKING:
    from glm_dist.inference.recorded import RecordedDecoder

DECODE_SIZES = (2, 4, 8, 16, 24, 32, 48, 64)
"""Rows of a decoding pass that are tried; on the processor one row costs no less than two."""
PREFILL_SIZES = (16, 32, 64, 128, 256)
"""Rows of a product in a prefill pass that are tried."""
_TRIED_KEYS = 8  # what a tried row sees: itself and those before it in a group of so many


class Runner:
    """A model with its cache."""

    def __init__(
        self, model: GLM, limits: EngineLimits, num_blocks: int, adapters: Adapters
    ) -> None:
        weight = next(model.parameters())
        dtype = compute_dtype(limits.dtype, weight.dtype, weight.device)
        self._settings, self._limits = model.settings, limits
        self._tiles, self._adapters = RowTiles(), adapters
        self._model, self._head = tiled_copy(
            model, self._tiles, adapters, dtype, limits.dtype == "int8"
        )
        prefix = model.prefix_states()
        self._prefix = None if prefix is None else prefix.detach().to(dtype)
        self._model.prefix_encoder = None
        self.cache = PagedCache(
            model.settings,
            num_blocks=num_blocks,
            block_tokens=limits.block_tokens,
            dtype=dtype,
            device=weight.device,
        )
        on_cuda = weight.device.type == "cuda" and dtype != torch.float64
        self._has_kernel = on_cuda and self._prefix is None
        self._decode_sizes = self._alike_sizes(model, limits.decode_rows, DECODE_SIZES)
        self._prefill_sizes = self._alike_sizes(model, limits.prefill_rows, PREFILL_SIZES)
        has_answers = self._has_kernel and not model.settings.head.is_classifier
        self._recorded = self._record() if has_answers and self._decode_sizes else None

    @property
    def max_decode_rows(self) -> int:
        """Rows of the largest decoding pass."""
        return max(self._decode_sizes, default=self._limits.max_running)

    def prefill(self, chunks: Sequence[Chunk]) -> list[Tensor] | None:
        """Compute parts of prompts; their hidden states, where those of one are asked for."""
        total = sum(chunk.end - chunk.start for chunk in chunks)
        unit = min(self._prefill_sizes, default=1)
        padded = -(-total // unit) * unit
        self._tiles.use(self._prefill_sizes)
        tokens, positions, slots, adapters = np.zeros((4, padded), dtype=np.int64)
        pieces: list[Piece] = []
        first = 0
        for chunk in chunks:
            places = np.arange(chunk.start, chunk.end)
            rows = slice(first, first + len(places))
            tokens[rows] = chunk.sequence.group.tokens[places]
            positions[rows] = places
            slots[rows] = self.cache.slots(chunk.sequence.prompt_blocks, places)
            adapters[rows] = chunk.sequence.group.adapter
            pieces += self._prompt_pieces(chunk, first)
            first += len(places)
        self._adapters.select(adapters, self.cache.layers[0])
        is_wanted = any(chunk.sequence.group.wants_hidden for chunk in chunks)
        past = PagedPass(self.cache, slots, pieces, prefix=self._prefix, skips_last=not is_wanted)
        hidden = self._hidden(tokens, positions, np.zeros_like(tokens), past, is_wanted)
        if not is_wanted:
            return None
        return list(hidden[:total].split([chunk.end - chunk.start for chunk in chunks]))

    def label_scores(self, hidden: Tensor) -> Tensor:
        """fp32 scores [places, labels] of hidden states [places, hidden size], by the head."""
        unit = min(self._prefill_sizes, default=1)
        padded = F.pad(hidden, (0, 0, 0, -len(hidden) % unit))
        self._tiles.use(self._prefill_sizes)
        return self._logits(padded)[: len(hidden)]

    def decode(self, rows: Sequence[Row]) -> Tensor:
        """fp32 logits [padded rows, V] of at most `max_decode_rows` tokens."""
        sizes = self._decode_sizes or (len(rows),)
        padded = next(size for size in sizes if size >= len(rows))
        inputs = np.zeros((5, padded), dtype=np.int64)
        tokens, positions, blocks, slots, adapters = inputs
        answers = [self._answer_piece(row) for row in rows]
        # Those of one length stand side by side, so that they attend without being gathered.
        order = sorted(range(len(rows)), key=lambda number: answers[number].padded_keys)
        pieces = []
        for place, number in enumerate(order):
            sequence, index = rows[number].sequence, rows[number].index
            tokens[place] = sequence.tokens[index]
            positions[place] = sequence.positions[index]
            adapters[place] = sequence.group.adapter
            blocks[place] = sequence.block_positions[index]
            block, offset = divmod(index, self._limits.block_tokens)
            slots[place] = sequence.answer_blocks[block] * self._limits.block_tokens + offset
            pieces.append(replace(answers[number], first_row=place))
        places = np.arange(padded)
        places[order] = places[: len(rows)]
        where = torch.from_numpy(places).to(self.cache.device)
        if self._recorded is not None and not adapters.any():
            return self._recorded.play(inputs[:4], pieces).index_select(0, where)
        self._tiles.use(self._decode_sizes)
        self._adapters.select(adapters, self.cache.layers[0])
        past = self._decode_pass(self.cache, inputs[:4], pieces)
        hidden = self._hidden(tokens, positions, blocks, past, is_wanted=True)
        return self._logits(hidden.index_select(0, where))

    def _decode_pass(self, cache: PagedCache, inputs: np.ndarray, pieces: list[Piece]) -> Past:
        """Of one query a text; `inputs` as `fill_columns` takes them."""
        if not self._has_kernel:
            return PagedPass(cache, inputs[3], pieces, prefix=self._prefix)
        from glm_dist.inference.recorded import TablePass, column_rows, fill_columns

        columns = np.zeros((column_rows(pieces), inputs.shape[1]), dtype=np.int64)
        fill_columns(columns, inputs, pieces)
        return TablePass(cache, torch.from_numpy(columns).to(cache.device))

    def _record(self) -> "RecordedDecoder":
        from glm_dist.inference.recorded import RecordedDecoder

        def compute(ids: Tensor, past: Past) -> Tensor:
            tokens, positions, blocks = ids
            hidden = self._model.hidden_states(tokens, positions, blocks, None, past)
            return self._logits(hidden.flatten(0, -2))

        self._tiles.use(self._decode_sizes)
        self._adapters.select(np.zeros(1, dtype=np.int64), self.cache.layers[0])
        return RecordedDecoder(compute, self.cache, self._decode_sizes)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self._head(hidden).float()
        logits[:, self._settings.vocab_size :] = -torch.inf
        return logits

    def _alike_sizes(self, model: GLM, period: int, candidates: Sequence[int]) -> tuple[int, ...]:
        """Rows of a pass that round as `period` rows do, smallest first; none where any may."""
        if not self._limits.fixed_shapes:
            return ()
        key = self._limits.block_tokens, self._limits.dtype, self._adapters.names
        return alike_sizes(model, lambda size: self._try(size, period), period, candidates, *key)

    @torch.inference_mode()
    def _try(self, size: int, period: int) -> Tensor:
        """Logits [rows, V] of rows that repeat after `period`, in passes of `size` rows.

        Each sees some before it. There are as many passes as it takes to see all of the period:
        of two rows alone those that sum otherwise may look alike.
        """
        self._tiles.use((size,))
        unit = self._limits.block_tokens
        tokens = np.random.default_rng(0).integers(self._settings.vocab_size, size=period)
        num_passes = -(-period // size)
        cache = PagedCache(
            self._settings,
            num_blocks=-(-num_passes * size // unit),
            block_tokens=unit,
            dtype=self.cache.dtype,
            device=self.cache.device,
        )
        logits = []
        for first in range(0, num_passes * size, size):
            row = np.arange(first, first + size)
            owners = row % period % (1 + len(self._adapters.names))
            self._adapters.select(owners, self.cache.layers[0])
            place = row % _TRIED_KEYS
            pieces = [
                Piece(
                    index - first, 1, 1, [1 + index // unit], num_prompt_keys=0,
                    answer_start=index // _TRIED_KEYS * _TRIED_KEYS % unit,
                    num_answer_keys=index % _TRIED_KEYS + 1,
                )
                for index in row.tolist()
            ]  # fmt: skip
            inputs = np.stack((tokens[row % period], place, place, row + unit))
            past = self._decode_pass(cache, inputs, pieces)
            logits.append(self._logits(self._hidden(inputs[0], place, place, past, True)))
        return torch.cat(logits)

    def _hidden(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        blocks: np.ndarray,
        past: Past,
        is_wanted: bool,
    ) -> Tensor:
        """Final hidden states [S, hidden size], none of them where only keys are wanted."""
        device = self.cache.device
        inputs = [torch.from_numpy(ids).to(device)[None] for ids in (tokens, positions, blocks)]
        rows = None if is_wanted else torch.empty(0, dtype=torch.long, device=device)
        hidden = self._model.hidden_states(inputs[0], inputs[1], inputs[2], None, past, rows)
        return hidden.flatten(0, -2)

    def _prompt_pieces(self, chunk: Chunk, first_row: int) -> list[Piece]:
        """A prompt that sees itself is one piece; a causal one has a piece for each query tile."""
        blocks = chunk.sequence.prompt_blocks
        if not self._settings.causal:
            count = chunk.end
            return [Piece(first_row, count, padded_length(count), blocks, num_prompt_keys=count)]
        return [
            Piece(
                first_row + start - chunk.start,
                min(QUERY_TILE, chunk.end - start),
                QUERY_TILE,
                blocks,
                num_prompt_keys=start + 1,
                is_causal=True,
            )
            for start in range(chunk.start, chunk.end, QUERY_TILE)
        ]

    def _answer_piece(self, row: Row) -> Piece:
        sequence = row.sequence
        return Piece(
            0,
            1,
            1,
            [*sequence.prompt_blocks, *sequence.answer_blocks],
            num_prompt_keys=len(sequence.group.tokens),
            answer_start=len(sequence.prompt_blocks) * self._limits.block_tokens,
            num_answer_keys=row.index + 1,
        )
