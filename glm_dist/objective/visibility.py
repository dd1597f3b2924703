"""Who sees whom: one rule, from which mask, flex-attention predicate and pair counts derive.

A key is visible to a query of the same sample when it does not come later, or lies in Part A
(GLM_SPEC 1.7). Samples of one row do not see each other. The functions take numpy arrays and torch
tensors alike; nothing here imports torch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any
"""A numpy array or a torch tensor."""


def visible(
    query: Array, key: Array, query_segment: Array, key_segment: Array, query_prefix_end: Array
) -> Array:
    """Whether the token at row index `key` is visible to the one at `query`; broadcasts."""
    return (query_segment == key_segment) & ((key <= query) | (key < query_prefix_end))


def dense_mask(segment_ids: Array, prefix_ends: Array) -> Array:
    """Queries by keys, [..., S, S] bool, of rows [..., S]."""
    index = _row_index(segment_ids)
    return visible(
        index[:, None],
        index[None, :],
        segment_ids[..., :, None],
        segment_ids[..., None, :],
        prefix_ends[..., :, None],
    )


def flex_mask_mod(segment_ids: Array, prefix_ends: Array) -> Callable[..., Array]:
    """The same rule as a flex-attention mask_mod over rows [B, S]."""

    def mask_mod(batch: Array, head: Array, query: Array, key: Array) -> Array:
        return visible(
            query,
            key,
            segment_ids[batch, query],
            segment_ids[batch, key],
            prefix_ends[batch, query],
        )

    return mask_mod


def visible_keys(segment_ids: np.ndarray, prefix_ends: np.ndarray) -> np.ndarray:
    """How many keys each token sees, int64 [..., S], 0 for padding; no mask is made."""
    index = np.arange(segment_ids.shape[-1])
    is_first = np.ones(segment_ids.shape, dtype=bool)
    is_first[..., 1:] = segment_ids[..., 1:] != segment_ids[..., :-1]
    first = np.maximum.accumulate(np.where(is_first, index, 0), axis=-1)
    seen = np.maximum(index + 1, prefix_ends) - first
    return np.where(segment_ids > 0, seen, 0)


def _row_index(segment_ids: Array) -> Array:
    length = segment_ids.shape[-1]
    if isinstance(segment_ids, np.ndarray):
        return np.arange(length)
    return segment_ids.new_ones(length).cumsum(0) - 1
