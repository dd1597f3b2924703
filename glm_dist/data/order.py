"""Which row comes when: global row g → (epoch, table entry), by a keyed permutation an epoch.

The *global row* counts on over the epochs, so the state of the data is one number, the next row,
and a list of skipped ranges. No worker, rank, call count or time enters.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from glm_dist.data.row_table import Piece, RowTable
from glm_dist.errors import DataError

Range = tuple[int, int]


class Permutation:
    """A keyed bijection of range(size): a Feistel network, walked until it lands inside.

    Six rounds over two halves, O(1) memory, vectorised; independent of numpy's generators, whose
    streams may change between releases.
    """

    ROUNDS = 6

    def __init__(self, size: int, *key: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, got {size}")
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._half_bits = np.uint64((bits + 1) // 2)
        self._mask = np.uint64((1 << ((bits + 1) // 2)) - 1)
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * self.ROUNDS).digest()
        self._keys = np.frombuffer(digest, dtype="<u8")

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Images (int64) of `indices`, each in range(size)."""
        images = self._encrypt(np.asarray(indices, dtype=np.uint64))
        while (outside := images >= self.size).any():
            images[outside] = self._encrypt(images[outside])
        return images.astype(np.int64)

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half_bits, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half_bits) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class RowOrder:
    """Global row number → (epoch, table entry), over consecutive epochs' tables."""

    tables: Sequence[RowTable]
    seed: int

    @cached_property
    def first_rows(self) -> np.ndarray:
        """Global row at which each epoch begins, and behind the last the number of all rows."""
        return np.cumsum([0, *(table.num_rows for table in self.tables)])

    @cached_property
    def _permutations(self) -> list[Permutation]:
        return [
            Permutation(table.num_rows, self.seed, epoch) for epoch, table in enumerate(self.tables)
        ]

    @property
    def sha256(self) -> str:
        """Hash over the first epoch's table and the seed, which all later epochs follow from."""
        return hashlib.sha256(f"{self.tables[0].sha256},{self.seed}".encode()).hexdigest()

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Epochs and entries (int64) of global `rows`."""
        if rows.size and int(rows.max()) >= self.first_rows[-1]:
            raise DataError(
                f"global row {int(rows.max())} lies beyond the {len(self.tables)} epochs built"
            )
        epochs = np.searchsorted(self.first_rows, rows, side="right") - 1
        entries = np.empty_like(rows)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            entries[here] = self._permutations[epoch](rows[here] - self.first_rows[epoch])
        return epochs, entries

    def pieces(self, rows: np.ndarray) -> Iterator[tuple[int, list[Piece]]]:
        """For each global row its epoch and its pieces."""
        for epoch, entry in zip(*self.locate(rows), strict=True):
            yield int(epoch), self.tables[epoch].pieces(int(entry))


def nth_rows(offsets: np.ndarray, next_row: int, skipped: Sequence[Range] = ()) -> np.ndarray:
    """The global rows `offsets` places after `next_row`, ranges [a, b) of `skipped` left out."""
    rows = np.asarray(offsets, dtype=np.int64) + next_row
    for start, stop in sorted(skipped):
        start = max(start, next_row)
        if stop > start:
            rows = np.where(rows >= start, rows + (stop - start), rows)
    return rows


@dataclass(frozen=True)
class RowSchedule:
    """Which global rows each rank meets at each optimizer step of an attempt.

    The rows of a step do not depend on the number of ranks; only their division does.
    """

    next_row: int
    skipped: tuple[Range, ...]
    rows_per_step: int
    world_size: int

    @property
    def rows_per_rank(self) -> int:
        """Rows of one rank in one step."""
        return self.rows_per_step // self.world_size

    def step_rows(self, step: int) -> np.ndarray:
        """All rows (int64) of the step that comes `step` steps after the resume."""
        offsets = np.arange(self.rows_per_step) + step * self.rows_per_step
        return nth_rows(offsets, self.next_row, self.skipped)

    def rank_rows(self, step: int, rank: int) -> np.ndarray:
        """Those of one rank, in the order it meets them."""
        return self.step_rows(step)[rank * self.rows_per_rank :][: self.rows_per_rank]

    def next_row_after(self, num_steps: int) -> int:
        """The next row once `num_steps` steps are done."""
        return int(
            nth_rows(np.array([num_steps * self.rows_per_step]), self.next_row, self.skipped)[0]
        )
