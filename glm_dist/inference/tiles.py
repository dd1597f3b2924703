"""The sizes of the tiles of rows that all maps of a model run in.

They stand apart because the runner chooses them for a pass, and all maps follow.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glm_dist.inference.products import Multiply


class RowTiles:
    """Cuts the rows of a product into tiles of sizes that round alike."""

    def __init__(self) -> None:
        self._sizes: tuple[int, ...] = ()
        self._cuts: dict[tuple[int, ...], dict[int, list[int]]] = {}

    def use(self, sizes: Sequence[int]) -> None:
        """From now on these sizes; none: each product has the rows that it is given."""
        self._sizes = tuple(sorted(sizes, reverse=True))

    def run(self, multiply: Multiply, rows: Tensor) -> Tensor:
        """Outputs [rows, out]; the number of rows is a sum of sizes."""
        cuts = self._cut(len(rows)) if self._sizes else [len(rows)]
        if len(cuts) == 1:
            return multiply(rows)
        return torch.cat([multiply(tile) for tile in rows.split(cuts)])

    def _cut(self, num_rows: int) -> list[int]:
        """Sizes that add up to that many rows, the largest that fit first."""
        known = self._cuts.setdefault(self._sizes, {})
        if num_rows not in known:
            cuts = known[num_rows] = []
            for size in self._sizes:
                cuts += [size] * ((num_rows - sum(cuts)) // size)
            assert sum(cuts) == num_rows
        return known[num_rows]
