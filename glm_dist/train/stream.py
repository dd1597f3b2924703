"""One optimizer step's micro-batches of this rank, checked against the order before use."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from glm_dist.data.order import RowSchedule
from glm_dist.data.rows import Rows
from glm_dist.errors import DataError
from glm_dist.model import Batch
from glm_dist.objective import Mode, visible_keys
from glm_dist.train.boundary import Boundary


@dataclass(frozen=True)
class StepRows:
    """A rank's share of one optimizer step, on the host."""

    micro_batches: list[Rows]

    @property
    def row_ids(self) -> np.ndarray:
        """Global numbers of the rows, int64."""
        return np.concatenate([rows["row_ids"] for rows in self.micro_batches])

    @cached_property
    def mode_counts(self) -> np.ndarray:
        """Loss-bearing tokens by objective mode, float64 [modes]."""
        modes = np.concatenate([rows["mode_ids"].ravel() for rows in self.micro_batches])
        masks = np.concatenate([rows["loss_mask"].ravel() for rows in self.micro_batches])
        return np.bincount(modes, masks, minlength=len(Mode))

    @cached_property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(int(np.count_nonzero(rows["segment_ids"])) for rows in self.micro_batches)

    @cached_property
    def num_visible_pairs(self) -> int:
        """Pairs (query, key) the attention has to compute, padding apart."""
        return sum(
            int(visible_keys(rows["segment_ids"], rows["prefix_ends"]).sum())
            for rows in self.micro_batches
        )

    def batches(self, device: torch.device) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Each micro-batch on the device, with its tokens' modes; copies do not wait."""
        for rows in self.micro_batches:
            yield to_batch(rows, device), to_tensor(rows["mode_ids"], device)


class RowStream:
    """Takes a rank's micro-batches from the boundary, step by step."""

    def __init__(self, boundary: Boundary, schedule: RowSchedule, micro_batch_size: int) -> None:
        self.schedule = schedule
        self._rank = boundary.rank
        self._micro_batch_size = micro_batch_size
        self._batches = boundary.batches()
        self._steps_taken = 0

    def next_step(self) -> StepRows:
        """The next step's micro-batches.

        Raises:
            DataError: when the rows that came are not those the order says, naming both.
        """
        expected = self.schedule.rank_rows(self._steps_taken, self._rank)
        micro_batches = []
        for start in range(0, len(expected), self._micro_batch_size):
            rows = next(self._batches, {})
            self._check(rows, expected[start : start + self._micro_batch_size])
            micro_batches.append(rows)
        self._steps_taken += 1
        return StepRows(micro_batches)

    @property
    def last_rows(self) -> np.ndarray:
        """Global rows of the last step taken, over all ranks."""
        return self.schedule.step_rows(self._steps_taken - 1)

    @property
    def next_row(self) -> int:
        """The first global row no step has taken yet."""
        return self.schedule.next_row_after(self._steps_taken)

    def _check(self, rows: Rows, expected: np.ndarray) -> None:
        got = rows.get("row_ids")
        if got is None or not np.array_equal(got, expected):
            found = None if got is None else got.tolist()
            raise DataError(
                f"rank {self._rank} got rows {found} where the order says {expected.tolist()}: the "
                "stream is not the one this run's order describes; nothing was trained on them, "
                "resubmit the run to resume it"
            )


def to_batch(rows: Rows, device: torch.device) -> Batch:
    """The model's inputs on the device."""
    return Batch(*(to_tensor(rows[name], device) for name in Batch._fields))


def to_tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A device tensor; pinned and asynchronous where the device is a GPU."""
    if not array.flags.writeable:
        array = array.copy()  # Ray's shared memory is read-only, which torch tensors cannot be
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
