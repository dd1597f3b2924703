"""The two kernels that rows share, alone: what a row computes is its own."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from glm_dist.inference.linear import RowTiledLinear
from glm_dist.inference.paged import PagedCache, PagedPass, Piece, padded_length
from glm_dist.inference.products import build_product, quantize_rows
from glm_dist.inference.tiles import RowTiles
from glm_dist.model import ModelSettings

DECODE, PREFILL = 16, 64


def build(weight, bias, is_int8=False):
    tiles = RowTiles()
    tiles.use((DECODE, PREFILL))
    return RowTiledLinear(len(weight), build_product(weight, bias, is_int8), tiles)


def check_rows(linear, num_inputs, dtype, expected, close):
    """Rows are what is expected, and the same to the last bit beside others and elsewhere."""
    generator = torch.Generator().manual_seed(1)
    for rows in (DECODE, PREFILL, 3 * PREFILL, 2 * PREFILL + 3 * DECODE):
        inputs = torch.randn(rows, num_inputs, generator=generator).to(dtype)
        outputs = linear(inputs)
        torch.testing.assert_close(outputs.double(), expected(inputs), **close)
        for _ in range(5):
            others = torch.randn(rows, num_inputs, generator=generator).to(dtype)
            order = torch.randperm(rows, generator=generator)
            kept = torch.rand(rows, generator=generator) < 0.5
            others[kept] = inputs[order[kept]]
            # A row that comes to lie in a tile of another size is not looked at: which sizes round
            # alike is tried when an engine is built.
            last = rows // PREFILL * PREFILL
            kept &= (order < last) == (torch.arange(rows) < last)
            assert torch.equal(linear(others)[kept], outputs[order[kept]])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(576, 448), (448, 1216), (1000, 96), (37, 13), (2432, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_a_linear_map_depends_on_no_other_row_and_not_on_its_place(shape, dtype, threads):
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(*shape, generator=generator).to(dtype)
    bias = torch.randn(shape[0], generator=generator).to(dtype)
    exact = dtype == torch.float32
    close = {"rtol": 2e-5, "atol": 1e-4} if exact else {"rtol": 0.02, "atol": 0.5}

    def expected(inputs):
        return F.linear(inputs.double(), weight.double(), bias.double())

    check_rows(build(weight, bias), shape[1], dtype, expected, close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(576, 448), (37, 13)])
def test_a_map_in_int8_multiplies_whole_numbers_and_gives_the_scales_back(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(*shape, generator=generator).to(dtype)
    bias = torch.randn(shape[0], generator=generator).to(dtype)

    def expected(inputs):
        (whole, scales), (rows, lengths) = quantize_rows(weight), quantize_rows(inputs)
        sums = rows.double() @ whole.double().T
        return sums * scales.double().T * lengths.double() + bias.double()

    rtol = 1e-5 if dtype == torch.float32 else 0.01
    close = {"rtol": rtol, "atol": rtol}
    check_rows(build(weight, bias, is_int8=True), shape[1], dtype, expected, close)


def test_rows_of_whole_numbers_are_near_what_they_were():
    values = torch.randn(50, 300) * torch.logspace(-3, 3, 50)[:, None]
    values[3] = 0
    whole, scales = quantize_rows(values)
    assert ((whole * scales - values).abs() <= scales / 2 * 1.001).all()
    assert whole.abs().amax() == 127


def test_a_linear_map_of_no_rows_gives_none():
    assert build(torch.randn(6, 4), None)(torch.empty(0, 4)).shape == (0, 6)


def test_padded_lengths_hold_their_tokens_and_waste_little():
    for count in range(1, 5000):
        padded = padded_length(count)
        assert padded >= count
        assert padded % 64 == 0
        assert padded < count + 64 or padded <= 1.25 * count
        assert padded_length(padded) == padded


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (7, 1)])
def test_attention_over_blocks_is_attention_and_the_same_beside_any_others(heads):
    num_heads, kv_heads = heads
    settings = ModelSettings(
        preset=None, num_layers=1, hidden_size=16 * num_heads, num_heads=num_heads,
        num_kv_heads=kv_heads,
    )  # fmt: skip
    rng, size = np.random.default_rng(0), settings.head_size
    cache = PagedCache(
        settings, num_blocks=200, block_tokens=16, dtype=torch.float32, device=torch.device("cpu")
    )
    texts = [_text(rng, kv_heads, num_heads, size) for _ in range(12)]
    alone = [_attend(cache, rng, [text])[0] for text in texts]
    for text, mixed in zip(texts, alone, strict=True):
        prompt, start, answer, keys, values, query = text
        seen = [*range(prompt), *range(start, start + answer)]
        repeated = [
            each[:, seen].repeat_interleave(num_heads // kv_heads, 0) for each in (keys, values)
        ]
        weights = (query[:, None].double() @ repeated[0].double().mT * size**-0.5).softmax(-1)
        expected = (weights @ repeated[1].double())[:, 0]
        torch.testing.assert_close(mixed.double(), expected, rtol=1e-4, atol=1e-5)
    for _ in range(10):
        order = rng.permutation(12)[: rng.integers(1, 13)]
        together = _attend(cache, rng, [texts[i] for i in order])
        assert all(torch.equal(mixed, alone[i]) for mixed, i in zip(together, order, strict=True))


def _text(rng, kv_heads, num_heads, size):
    """Lengths of prompt and answer, keys and values [Hkv, length, D], and a query [H, D]."""
    prompt = int(rng.integers(1, 150))
    start, answer = -(-prompt // 16) * 16, int(rng.integers(1, 40))
    keys, values = torch.from_numpy(
        rng.standard_normal((2, kv_heads, start + answer, size), dtype=np.float32)
    )
    query = torch.from_numpy(rng.standard_normal((num_heads, size), dtype=np.float32))
    return prompt, start, answer, keys, values, query


def _attend(cache, rng, texts):
    """The last token of each text attends, and its key is written by that very pass."""
    free = (1 + rng.permutation(200)).tolist()
    pages = cache.layers[0].flatten(0, 1)
    slots, pieces = np.zeros(16, dtype=np.int64), []
    inputs = [torch.zeros(1, texts[0][5].shape[0], 16, texts[0][5].shape[1])]
    inputs += [torch.zeros(1, texts[0][3].shape[0], 16, texts[0][3].shape[2]) for _ in range(2)]
    for row, (prompt, start, answer, keys, values, query) in enumerate(texts):
        length = start + answer
        blocks = [free.pop() for _ in range(-(-length // 16))]
        places = cache.slots(blocks, np.arange(length))
        pages[places[:-1], 0] = keys[:, :-1].transpose(0, 1)
        pages[places[:-1], 1] = values[:, :-1].transpose(0, 1)
        slots[row] = places[-1]
        for tensor, own in zip(inputs, (query, keys[:, -1], values[:, -1]), strict=True):
            tensor[0, :, row] = own
        pieces.append(
            Piece(
                row, 1, 1, blocks,
                num_prompt_keys=prompt, answer_start=start, num_answer_keys=answer,
            )
        )  # fmt: skip
    mixed = PagedPass(cache, slots, pieces).attend(0, None)(*inputs)
    return [mixed[0, :, row] for row in range(len(texts))]
