"""Held-out loss of blank infilling on text tokens alone, beside what a unigram model would get.

The rows are always the same ones, built once from the validation split, dealt to the ranks.
Special tokens (`<eop>` and the like) are left out of the figures: they are easy and flatter.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from glm_dist.data.order import Permutation
from glm_dist.data.row_table import Piece
from glm_dist.data.rows import FILL_ROW_ID, RowBuilder, Rows
from glm_dist.errors import DataError


class TokenOutputs(NamedTuple):
    """What a model says to rows, on the host."""

    losses: np.ndarray
    """Of every token, float32 [rows, sequence], zero where there is none."""
    label_scores: np.ndarray | None = None
    """Of a classifier, float32 [rows, sequence, labels]."""


Forward = Callable[[Rows], TokenOutputs]
AllSum = Callable[[np.ndarray], np.ndarray]


class Evaluator(Protocol):
    """What a model is measured by in training; each rank holds its share of the rows."""

    def measure(self, forward: Forward, all_sum: AllSum) -> dict[str, float]:
        """Figures by name, the same on all ranks."""

    def score(self, figures: dict[str, float]) -> float:
        """The one figure that says which of two models is better; lower is."""

    def measure_more(self, forward: Forward, all_sum: AllSum) -> dict[str, float]:
        """Figures that are wanted at the end alone."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows of one rank and what is known of their tokens."""

    rows: Rows
    text_mask: np.ndarray
    """[rows, sequence] bool: loss-bearing targets that are text."""
    languages: np.ndarray
    """[rows, sequence] int: index into `language_names`."""
    language_names: list[str]
    piece_bytes: np.ndarray
    """[vocabulary] int: UTF-8 bytes each token stands for."""
    micro_batch_size: int
    seed: int = 0

    def measure(self, forward: Forward, all_sum: AllSum) -> dict[str, float]:
        """Loss and unigram entropy in nats a text token, their ratio, bits a byte."""
        sums, counts, size = self._loss_sums(forward)
        totals = all_sum(np.concatenate((sums, counts, size)))
        sums, counts, size = np.split(totals, 3)
        loss, entropy = sums.sum() / counts.sum(), self.unigram_entropy(all_sum)
        metrics = {
            "heldout/loss": float(loss),
            "heldout/unigram_entropy": entropy,
            "heldout/loss_over_unigram": float(loss / entropy),
            "heldout/bits_per_byte": float(sums.sum() / size.sum() / math.log(2)),
            "heldout/tokens": float(counts.sum()),
        }
        for name, total, nbytes in zip(self.language_names, sums, size, strict=True):
            if nbytes:
                metrics[f"heldout/bits_per_byte_{name}"] = float(total / nbytes / math.log(2))
        return metrics

    def score(self, figures: dict[str, float]) -> float:
        """The loss."""
        return figures["heldout/loss"]

    def measure_more(self, forward: Forward, all_sum: AllSum) -> dict[str, float]:
        """What context is worth: the loss where the visible text is shuffled."""
        figures = self.with_shuffled_context(self.seed).measure(forward, all_sum)
        return {"heldout/loss_shuffled_context": figures["heldout/loss"]}

    def unigram_entropy(self, all_sum: AllSum) -> float:
        """Entropy in nats of the held-out text targets' own distribution: the strictest unigram."""
        targets = self.rows["targets"][self.text_mask]
        counts = all_sum(np.bincount(targets, minlength=len(self.piece_bytes)).astype(np.float64))
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log(shares)).sum())

    def with_shuffled_context(self, seed: int) -> "HeldOut":
        """The same rows with the visible text of each Part A shuffled; what context is worth."""
        shuffled = _shuffle_part_a(self.rows, self.piece_bytes > 0, seed)
        return replace(self, rows={**self.rows, "tokens": shuffled})

    def _loss_sums(self, forward: Forward) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        num_rows, num_languages = len(self.rows["row_ids"]), len(self.language_names)
        sums = np.zeros((3, num_languages))
        for start in range(0, num_rows, self.micro_batch_size):
            part = slice(start, start + self.micro_batch_size)
            losses = forward({name: array[part] for name, array in self.rows.items()}).losses
            text, languages = self.text_mask[part], self.languages[part]
            targets = self.rows["targets"][part][text]
            weights = (losses[text], np.ones(text.sum()), self.piece_bytes[targets])
            for total, weight in zip(sums, weights, strict=True):
                total += np.bincount(languages[text], weight, minlength=num_languages)
        return sums[0], sums[1], sums[2]


def build_heldout(
    builder: RowBuilder, num_rows: int, micro_batch_size: int, rank: int = 0, world_size: int = 1
) -> HeldOut:
    """This rank's share of the first `num_rows` validation rows, completed by fill rows."""
    packed = _pack(builder, num_rows)
    if not packed:
        raise DataError(
            f"{builder.dataset.folder}: its validation split is empty; prepare the data with a "
            "larger validation_share or set evaluation.num_rows=0"
        )
    row_ids = np.full(-(-len(packed) // world_size) * world_size, FILL_ROW_ID)
    row_ids[: len(packed)] = np.arange(len(packed))
    mine = row_ids[rank::world_size]
    rows = builder.build(mine, ((0, packed[row]) for row in mine if row >= 0))
    piece_bytes = builder.dataset.tokenizer.piece_bytes
    return HeldOut(
        rows=rows,
        text_mask=(rows["loss_mask"] > 0) & (piece_bytes[rows["targets"]] > 0),
        languages=_languages(builder, rows, packed),
        language_names=builder.dataset.languages,
        piece_bytes=piece_bytes,
        micro_batch_size=micro_batch_size,
        seed=builder.seed,
    )


def _pack(builder: RowBuilder, num_rows: int) -> list[list[Piece]]:
    """Rows over documents in a keyed order, so that a few show every source and language."""
    lengths = builder.lengths
    if not len(lengths):
        return []
    documents = Permutation(len(lengths), builder.seed)(np.arange(len(lengths)))
    budget = 2 * num_rows * builder.rows.sequence_length
    needed = int(np.searchsorted(np.cumsum(lengths[documents]), budget)) + 1
    chosen = documents[:needed].tolist()
    return builder.packer(0).pack(chosen, lengths[chosen].tolist())[:num_rows]


def _languages(builder: RowBuilder, rows: Rows, packed: list[list[Piece]]) -> np.ndarray:
    """[rows, sequence]: the language of each token's document, as an index into the names."""
    names = builder.dataset.languages
    languages = np.zeros_like(rows["segment_ids"])
    for row, row_id in enumerate(rows["row_ids"]):
        pieces = packed[row_id] if row_id >= 0 else []
        of_segment = [0] + [
            names.index(builder.dataset.language_of("validation", piece.document))
            for piece in pieces
        ]
        languages[row] = np.asarray(of_segment)[rows["segment_ids"][row]]
    return languages


def _shuffle_part_a(rows: Rows, is_text: np.ndarray, seed: int) -> np.ndarray:
    tokens = rows["tokens"].copy()
    visible = (rows["block_position_ids"] == 0) & (rows["segment_ids"] > 0) & is_text[tokens]
    generator = np.random.RandomState(seed)
    for row, segments in enumerate(rows["segment_ids"]):
        for segment in range(1, segments.max(initial=0) + 1):
            places = np.flatnonzero(visible[row] & (segments == segment))
            tokens[row, places] = tokens[row, generator.permutation(places)]
    return tokens
