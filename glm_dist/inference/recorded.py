"""Decoding on CUDA: passes that are recorded once for each size and played for every token.

They stand apart because a recorded pass knows nothing but addresses: tokens, places, lengths and
blocks lie in one tensor that each step overwrites, and attention reads them there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glm_dist.inference.paged import PagedCache, Piece
from glm_dist.inference.paged_kernel import paged_attention
from glm_dist.model.attention import Attend

NUM_FIELDS = 7
"""Of a row: token, position, block position, slot, prompt keys, begin and end of the answer's."""


class TablePass:
    """One query a text, whose keys a kernel finds by tables on the device."""

    def __init__(self, cache: PagedCache, columns: Tensor) -> None:
        """Args: keys and values of all texts; what `fill_columns` wrote, on the device."""
        self._cache, self._slots = cache, columns[3]
        self._spans, self._table = columns[4:NUM_FIELDS], columns[NUM_FIELDS:]

    def advance(self, num_tokens: int) -> None:
        """Nothing: slots were given for all rows."""

    def attend(self, layer: int, attend: Attend) -> Attend:
        """Attention of `layer`; what `attend` would do is of no concern."""

        def attend_pages(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            pages = self._cache.write(layer, self._slots, key, value)
            rows = query[0].transpose(0, 1)
            mixed = paged_attention(rows, pages, self._table, self._spans)
            return mixed.transpose(0, 1)[None]

        return attend_pages


def column_rows(pieces: Sequence[Piece]) -> int:
    """Rows of the columns that a pass takes."""
    return NUM_FIELDS + max(len(piece.blocks) for piece in pieces)


def fill_columns(columns: np.ndarray, inputs: np.ndarray, pieces: Sequence[Piece]) -> None:
    """Write a pass down.

    Args:
        columns: int64 [fields + blocks, rows], to be written.
        inputs: int64 [4, rows]: tokens, positions, block positions and slots.
        pieces: of the rows from the first on; the others see nothing.
    """
    columns[:4] = inputs
    columns[4:NUM_FIELDS, len(pieces) :] = 0
    for place, piece in enumerate(pieces):
        end = piece.answer_start + piece.num_answer_keys
        columns[4:NUM_FIELDS, place] = piece.num_prompt_keys, piece.answer_start, end
        columns[NUM_FIELDS : NUM_FIELDS + len(piece.blocks), place] = piece.blocks


@dataclass(frozen=True)
class _Recording:
    host: Tensor
    """Pinned."""
    columns: Tensor
    graph: torch.cuda.CUDAGraph
    logits: Tensor


class RecordedDecoder:
    """Plays decoding passes, one recording for each number of rows."""

    def __init__(
        self,
        compute: Callable[[Tensor, TablePass], Tensor],
        cache: PagedCache,
        sizes: Sequence[int],
    ) -> None:
        """Record.

        Args:
            compute: logits [rows, V] of int64 [3, 1, rows], tokens, positions and block positions.
            cache: of all texts.
            sizes: numbers of rows.
        """
        self._compute, self._cache = compute, cache
        self._recordings: dict[int, _Recording] = {}
        for size in sorted(sizes, reverse=True):  # the largest first: its memory serves the others
            self._recordings[size] = self._record(size)

    def play(self, inputs: np.ndarray, pieces: Sequence[Piece]) -> Tensor:
        """Logits [rows, V] until the next pass; the arguments are those of `fill_columns`."""
        recording = self._recordings[inputs.shape[1]]
        fill_columns(recording.host.numpy(), inputs, pieces)
        used = column_rows(pieces)
        recording.columns[:used].copy_(recording.host[:used])
        recording.graph.replay()
        return recording.logits

    @torch.inference_mode()
    def _record(self, size: int) -> _Recording:
        num_blocks = len(self._cache.layers[0])
        host = torch.zeros(NUM_FIELDS + num_blocks, size, dtype=torch.int64, pin_memory=True)
        columns = host.to(self._cache.device)
        past, ids = TablePass(self._cache, columns), columns[:3, None]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._compute(ids, past)  # compiles kernels and takes work space, which no graph can
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        pool = next((each.graph.pool() for each in self._recordings.values()), None)
        with torch.cuda.graph(graph, pool=pool):
            logits = self._compute(ids, past)
        return _Recording(host, columns, graph, logits)
