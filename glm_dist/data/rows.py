"""Finished training rows: pieces read from the shards, infilled, laid side by side.

Runs wherever rows are wanted: in Ray Data tasks for training, in the workers for evaluation. The
same (seed, epoch, piece) gives the same bytes everywhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from glm_dist.config import Settings
from glm_dist.data.order import Permutation
from glm_dist.data.row_table import Packer, Piece
from glm_dist.data.shards import TokenDataset
from glm_dist.objective import (
    BlankInfillSettings,
    InfillPlan,
    ObjectiveSettings,
    Sample,
    assemble,
    draw_plan,
    piece_rng,
)

FILL_ROW_ID = -1  # a row of weight 0 that only completes a block
GOLDEN_RATIO = (5**0.5 - 1) / 2

_DTYPES = {
    "tokens": np.int32,
    "targets": np.int32,
    "position_ids": np.int32,
    "block_position_ids": np.int32,
    "segment_ids": np.int32,
    "prefix_ends": np.int32,
    "loss_mask": np.uint8,
    "mode_ids": np.int8,
}

Rows = dict[str, np.ndarray]


class RowSettings(Settings):
    """How documents become rows."""

    sequence_length: int = 512
    """Tokens in a row, Part B included; a row holds several samples that do not see each other."""
    min_piece_tokens: int = 32
    """A document is not cut to fill a row's rest shorter than this many tokens."""
    source_shares: dict[str, Annotated[float, Field(gt=0, le=1)]] = {}
    """Share of a source's training documents that an epoch holds, by its name; 0.25 of books shows
    each book every fourth epoch. Sources not named are seen whole in each epoch."""

    def told(self) -> dict[str, Any]:
        """What rows depend on; a setting that came later is there only where it is used."""
        return self.model_dump(exclude=set() if self.source_shares else {"source_shares"})


@dataclass(frozen=True)
class RowBuilder:
    """Builds the rows of one split of a dataset under one objective."""

    dataset: TokenDataset
    split: str
    rows: RowSettings
    objective: ObjectiveSettings
    seed: int

    @cached_property
    def infill(self) -> BlankInfillSettings:
        """The objective bound to the dataset's vocabulary."""
        tokenizer = self.dataset.tokenizer
        return BlankInfillSettings(self.objective, tokenizer.special, tokenizer.sentence_end)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each document of the split, int64."""
        return self.dataset.lengths(self.split)

    @property
    def num_shares(self) -> int:
        """Labels that each token has shares of, float32 [labels]; 0 where targets are ids."""
        return 0

    def text(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """`[ENC]` + the piece (+ eos at the document's end), and which may be predicted."""
        special = self.infill.special
        content = self.dataset.tokens(self.split, piece.document, piece.start, piece.length)
        ends = piece.start + piece.length == self.lengths[piece.document]
        tail = [special.eos] if ends else []
        tokens = np.concatenate(([special.enc], content, tail)).astype(np.int32)
        loss_mask = np.ones(len(tokens), dtype=np.uint8)
        loss_mask[0] = 0
        return tokens, loss_mask

    def plan(self, epoch: int, piece: Piece) -> tuple[np.ndarray, np.ndarray, InfillPlan]:
        """The piece's tokens, loss mask and span draw, keyed by (seed, epoch, document, start)."""
        tokens, loss_mask = self.text(piece)
        rng = piece_rng(self.seed, epoch, piece.document, piece.start)
        return tokens, loss_mask, draw_plan(tokens, loss_mask, rng, self.infill)

    def sample(self, epoch: int, piece: Piece) -> tuple[Sample, int]:
        """The GLM sample of a piece, and its mode."""
        tokens, loss_mask, plan = self.plan(epoch, piece)
        return assemble(tokens, loss_mask, plan, self.infill), int(plan.mode)

    def packer(self, epoch: int) -> Packer:
        """The packer of an epoch, drawing the lengths that `build` will meet."""

        def infilled_length(document: int, start: int, length: int) -> int:
            return self.plan(epoch, Piece(document, start, length))[2].infilled_length

        def max_piece_tokens(document: int, start: int) -> int:
            return self._short_sequence(epoch, document, start) or self.rows.sequence_length

        return Packer(
            sequence_length=self.rows.sequence_length,
            min_piece_tokens=min(self.rows.min_piece_tokens, self.rows.sequence_length // 4),
            infilled_length=infilled_length,
            max_piece_tokens=max_piece_tokens,
        )

    def pack_shard(self, epoch: int, number: int) -> list[list[Piece]]:
        """The rows of a shard's documents, shuffled by a key of the epoch."""
        shard = self.dataset.shards(self.split)[number]
        shuffle = Permutation(shard.num_documents, self.seed, epoch, number)
        order = shuffle(np.arange(shard.num_documents))
        if self.rows.source_shares and self.split == "train":
            order = order[self._is_in_epoch(epoch, number)[order]]
        documents = (shard.first_document + order).tolist()
        return self.packer(epoch).pack(documents, self.lengths[documents].tolist())

    def _is_in_epoch(self, epoch: int, number: int) -> np.ndarray:
        """Which documents of a shard an epoch holds, bool; each waits as long as the others.

        A document's turns lie at every 1 / share, from a phase of its own; phases of neighbours
        are spread evenly, so that every epoch holds about the same of a source.
        """
        sources = self.dataset.sources_of_shard(self.split, number)
        shares = np.array([self.rows.source_shares.get(source, 1.0) for source in sources])
        phases = np.arange(len(shares)) * GOLDEN_RATIO % 1
        turns = [np.floor(phases + at * shares) for at in (epoch, epoch + 1)]
        return np.asarray((turns[1] > turns[0]) | (shares == 1))

    def _short_sequence(self, epoch: int, document: int, start: int) -> int | None:
        """GLM's short sequences as a draw a piece; its stream is apart from the spans'."""
        probability = self.objective.short_sequence_probability
        if not probability:
            return None
        rng = piece_rng(self.seed, epoch, document, -1 - start)
        if rng.random() >= probability:
            return None
        return rng.randrange(32, max(33, self.rows.sequence_length - 1))

    def build(self, row_ids: np.ndarray, contents: Iterator[tuple[int, Sequence[Piece]]]) -> Rows:
        """Arrays [rows, sequence_length] of the named contents; a negative row id is a fill row."""
        out = self._empty(len(row_ids))
        out["row_ids"] = np.asarray(row_ids, dtype=np.int64)
        out["row_weights"] = (out["row_ids"] >= 0).astype(np.float32)
        for row, (epoch, pieces) in zip(np.flatnonzero(out["row_ids"] >= 0), contents, strict=True):
            self._lay(out, int(row), epoch, pieces)
        return out

    def _empty(self, num_rows: int) -> Rows:
        out: Rows = {
            name: np.zeros((num_rows, self.rows.sequence_length), dtype=dtype)
            for name, dtype in _DTYPES.items()
        }
        out["tokens"].fill(self.infill.special.pad)
        out["targets"].fill(self.infill.special.pad)
        if self.num_shares:
            out["targets"] = np.zeros((*out["targets"].shape, self.num_shares), np.float32)
        return out

    def _lay(self, out: Rows, row: int, epoch: int, pieces: Sequence[Piece]) -> None:
        start = 0
        for segment, piece in enumerate(pieces, start=1):
            sample, mode = self.sample(epoch, piece)
            place = (row, slice(start, start + len(sample.tokens)))
            out["tokens"][place] = sample.tokens
            out["targets"][place] = sample.targets
            out["loss_mask"][place] = sample.loss_mask
            out["position_ids"][place] = sample.position_ids
            out["block_position_ids"][place] = sample.block_position_ids
            out["segment_ids"][place] = segment
            out["prefix_ends"][place] = start + sample.part_a_length
            out["mode_ids"][place] = mode
            start += len(sample.tokens)
