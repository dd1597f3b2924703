"""Which numbers of rows a model computes in one pass with the same bits for each row.

They stand apart because nothing but trying tells: a library may sum a product of another number of
rows in another order, and which ones it does depends on the processor, the threads and the shape.
A pass over few rows then takes the smallest shape that rounds as the reference does.
"""

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from glm_dist.model import GLM

Compute = Callable[[int], Tensor]
"""Rows of a pass to what at least `period` rows give, [rows, …]; row k is row k + `period`."""

_FOUND: WeakKeyDictionary[GLM, dict[tuple[object, ...], tuple[int, ...]]] = WeakKeyDictionary()


def alike_sizes(
    model: GLM, compute: Compute, period: int, candidates: Sequence[int], *key: object
) -> tuple[int, ...]:
    """The candidates whose rows equal those of a pass of `period` rows to the last bit.

    `period` itself is always one. What was found is kept by model, `key` and number of threads.
    """
    known = _FOUND.setdefault(model, {})
    key = (*key, period, tuple(candidates), torch.get_num_threads())
    if key not in known:
        expected = _bits(compute(period))
        known[key] = tuple(
            sorted({period, *(size for size in candidates if _is_alike(compute(size), expected))})
        )
    return known[key]


def _is_alike(found: Tensor, expected: Tensor) -> bool:
    return all(
        torch.equal(part, expected[: len(part)]) for part in _bits(found).split(len(expected))
    )


def _bits(values: Tensor) -> Tensor:
    """The same as whole numbers, so that what is no number equals itself."""
    return values.contiguous().view(torch.int32 if values.dtype == torch.float32 else torch.int16)
