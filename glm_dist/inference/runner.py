"""The model's passes: prompts into the cache, and tokens of answers to logits.

It stands apart as the one place that lays texts side by side for the model. Both passes have fixed
shapes that padding fills up, so what a token computes does not depend on what lies beside it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glm_dist.inference.linear import tiled_copy
from glm_dist.inference.paged import QUERY_TILE, PagedCache, PagedPass, Piece, padded_length
from glm_dist.inference.scheduler import Chunk, Row
from glm_dist.inference.settings import EngineLimits
from glm_dist.model import GLM


class Runner:
    """A model with its cache."""

    def __init__(self, model: GLM, limits: EngineLimits, num_blocks: int) -> None:
        weight = next(model.parameters())
        self._settings, self._limits = model.settings, limits
        self._model, self._head = tiled_copy(
            model, decode_rows=limits.decode_rows, prefill_rows=limits.prefill_rows
        )
        prefix = model.prefix_states()
        self._prefix = None if prefix is None else prefix.detach().to(weight.dtype)
        self._model.prefix_encoder = None
        self.cache = PagedCache(
            model.settings,
            num_blocks=num_blocks,
            block_tokens=limits.block_tokens,
            dtype=weight.dtype,
            device=weight.device,
        )

    def prefill(self, chunks: Sequence[Chunk]) -> list[Tensor] | None:
        """Compute parts of prompts; their hidden states, where one of them is to be embedded."""
        total = sum(chunk.end - chunk.start for chunk in chunks)
        padded = -(-total // self._limits.prefill_rows) * self._limits.prefill_rows
        tokens, positions, slots = np.zeros((3, padded), dtype=np.int64)
        pieces: list[Piece] = []
        first = 0
        for chunk in chunks:
            places = np.arange(chunk.start, chunk.end)
            rows = slice(first, first + len(places))
            tokens[rows] = chunk.sequence.group.tokens[places]
            positions[rows] = places
            slots[rows] = self.cache.slots(chunk.sequence.prompt_blocks, places)
            pieces += self._prompt_pieces(chunk, first)
            first += len(places)
        is_embedded = any(chunk.sequence.group.is_embedding for chunk in chunks)
        past = PagedPass(self.cache, slots, pieces, prefix=self._prefix, skips_last=not is_embedded)
        hidden = self._hidden(tokens, positions, np.zeros_like(tokens), past, is_embedded)
        if not is_embedded:
            return None
        return list(hidden[:total].split([chunk.end - chunk.start for chunk in chunks]))

    def decode(self, rows: Sequence[Row]) -> Tensor:
        """fp32 logits [decode_rows, V] of at most as many tokens; those past `rows` are padding."""
        tokens, positions, blocks, slots = np.zeros((4, self._limits.decode_rows), dtype=np.int64)
        pieces = []
        for place, row in enumerate(rows):
            sequence, index = row.sequence, row.index
            tokens[place] = sequence.tokens[index]
            positions[place] = sequence.positions[index]
            blocks[place] = sequence.block_positions[index]
            block, offset = divmod(index, self._limits.block_tokens)
            slots[place] = sequence.answer_blocks[block] * self._limits.block_tokens + offset
            pieces.append(self._answer_piece(row, place))
        past = PagedPass(self.cache, slots, pieces, prefix=self._prefix)
        hidden = self._hidden(tokens, positions, blocks, past, is_wanted=True)
        logits = self._head(hidden).float()
        logits[:, self._settings.vocab_size :] = -torch.inf
        return logits

    def _hidden(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        blocks: np.ndarray,
        past: PagedPass,
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

    def _answer_piece(self, row: Row, place: int) -> Piece:
        sequence = row.sequence
        return Piece(
            place,
            1,
            1,
            [*sequence.prompt_blocks, *sequence.answer_blocks],
            num_prompt_keys=len(sequence.group.tokens),
            answer_start=len(sequence.prompt_blocks) * self._limits.block_tokens,
            num_answer_keys=row.index + 1,
        )
