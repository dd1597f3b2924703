"""One query a text over its keys in blocks, on CUDA: each text by a program of its own.

It stands apart as the one file that knows Triton, which torch's CUDA build brings along. A program
walks over the keys of one text in tiles that begin at its first token, so what it sums, and in
which order, depends on nothing else in the pass; and it finds lengths and blocks in tensors, so a
pass can be recorded once as a CUDA graph for all lengths.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

KEY_TILE = 64
"""Keys that meet the queries of a text at once."""
_FEWEST_ROWS = 16  # of a matrix product in Triton


def paged_attention(query: Tensor, pages: Tensor, table: Tensor, spans: Tensor) -> Tensor:
    """Mixed values [R, H, D] of queries of that shape, zeros where a row sees nothing.

    Args:
        query: one of each text, of as many heads as a multiple of the key heads.
        pages: keys and values of a layer, [blocks, block tokens, 2, key heads, D].
        table: int64 [blocks of a text, R], the blocks of its keys in their order.
        spans: int64 [3, R]: a text's number of prompt keys, and where among the keys those of the
            answer begin and end.
    """
    rows, heads, size = query.shape
    block_tokens, kv_heads = pages.shape[1], pages.shape[3]
    shared = heads // kv_heads
    mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
    _attend[(rows, kv_heads)](
        query,
        pages,
        table,
        spans,
        mixed,
        size**-0.5,
        rows,
        *query.stride()[:2],
        block_tokens=block_tokens,
        kv_heads=kv_heads,
        shared=shared,
        size=size,
        num_queries=max(_FEWEST_ROWS, triton.next_power_of_2(shared)),
        width=max(_FEWEST_ROWS, triton.next_power_of_2(size)),
        tile=KEY_TILE,
    )
    return mixed


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query,
    pages,
    table,
    spans,
    mixed,
    scale,
    num_rows,
    row_stride,
    head_stride,
    block_tokens: tl.constexpr,
    kv_heads: tl.constexpr,
    shared: tl.constexpr,
    size: tl.constexpr,
    num_queries: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
):
    """The query heads of one text that share a key head; softmax as it goes (Milakov 2018)."""
    row, kv_head = tl.program_id(0), tl.program_id(1)
    prompt = tl.load(spans + row).to(tl.int32)
    start = tl.load(spans + num_rows + row).to(tl.int32)
    end = tl.load(spans + 2 * num_rows + row).to(tl.int32)
    group, lane = tl.arange(0, num_queries), tl.arange(0, width)
    is_query = (group < shared)[:, None] & (lane < size)[None, :]
    head = kv_head * shared + group
    places = row * row_stride + head[:, None] * head_stride + lane[None, :]
    queries = tl.load(query + places, mask=is_query, other=0.0)
    largest = tl.full((num_queries,), float("-inf"), tl.float32)
    total = tl.zeros((num_queries,), tl.float32)
    values_sum = tl.zeros((num_queries, width), tl.float32)
    for first in range(0, tl.maximum(prompt, end), tile):
        key = first + tl.arange(0, tile)
        is_seen = (key < prompt) | ((key >= start) & (key < end))
        block = tl.load(table + key // block_tokens * num_rows + row, mask=is_seen, other=0)
        token = block * block_tokens + key % block_tokens
        at = (token * (2 * kv_heads) + kv_head)[:, None] * size + lane[None, :]
        is_real = is_seen[:, None] & (lane < size)[None, :]
        keys = tl.load(pages + at, mask=is_real, other=0.0)
        values = tl.load(pages + at + kv_heads * size, mask=is_real, other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, axis=1))
        shares = tl.exp(scores - higher[:, None])
        kept = tl.exp(largest - higher)
        total = total * kept + tl.sum(shares, axis=1)
        products = tl.dot(shares.to(values.dtype), values, input_precision="ieee")
        values_sum = values_sum * kept[:, None] + products
        largest = higher
    outputs = values_sum / tl.where(total > 0, total, 1.0)[:, None]
    places = (row * kv_heads * shared + head[:, None]) * size + lane[None, :]
    tl.store(mixed + places, outputs.to(mixed.dtype.element_ty), mask=is_query)
