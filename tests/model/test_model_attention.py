import logging

import pytest
import torch

from glm_dist.model import Batch, attention, build_model
from glm_dist.model.attention import build_attend, dense_attend
from glm_dist.objective import dense_mask


@pytest.fixture
def rows(make_sample, pack):
    def make(length):
        samples = [make_sample(seed, part_a=20 + seed, part_b=9) for seed in range(3)]
        return pack(samples, length)

    return make


def test_the_mask_is_made_once_for_all_layers(tiny, rows, monkeypatch):
    calls = []
    make = attention.dense_mask
    monkeypatch.setattr(attention, "dense_mask", lambda *a: calls.append(1) or make(*a))
    build_model(tiny(num_layers=5))(*rows(128))
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_sees_what_the_exact_mask_shows(tiny, rows):
    batch = rows(256)
    query, key, value = torch.randn(3, 1, 2, 256, 16).unbind(0)
    attend = build_attend(tiny(attention="flex"), batch.segment_ids, batch.prefix_ends, False)
    exact = dense_attend(dense_mask(batch.segment_ids, batch.prefix_ends)[:, None])
    torch.testing.assert_close(attend(query, key, value), exact(query, key, value))


@pytest.mark.parametrize("length", [100, 128])
def test_flex_attention_that_cannot_run_falls_back_with_its_reason(tiny, rows, length, caplog):
    attention._warn_once.cache_clear()
    batch = rows(length)
    with caplog.at_level(logging.WARNING):
        loss = build_model(tiny(attention="flex"))(*batch).loss_sum
    assert torch.equal(loss, build_model(tiny(attention="sdpa"))(*batch).loss_sum)
    assert "sdpa is used instead" in caplog.text


def test_automatic_choice_on_cpu_is_silent(tiny, rows, caplog):
    with caplog.at_level(logging.WARNING):
        build_model(tiny())(*rows(100))
    assert not caplog.text


def test_plain_products_in_bf16_training_equal_the_fused_kernel(rows):
    batch = rows(96)
    mask = dense_mask(batch.segment_ids, batch.prefix_ends)[:, None]
    inputs = [torch.randn(1, 2, 96, 16, dtype=torch.bfloat16) for _ in range(3)]
    fused = dense_attend(mask)(*inputs)
    plain = dense_attend(mask)(*(tensor.clone().requires_grad_() for tensor in inputs))
    torch.testing.assert_close(plain, fused, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kernel", ["flex", "sdpa"])
def test_cuda_kernels_give_the_losses_of_the_cpu(tiny, rows, kernel):
    batch = rows(256)
    expected = build_model(tiny())(*batch)
    model = build_model(tiny(attention=kernel), device="cuda")
    output = model(*batch.to("cuda"))
    output.loss_sum.backward()
    torch.testing.assert_close(
        output.token_losses.cpu(), expected.token_losses, rtol=5e-3, atol=5e-3
    )


def packed_rows(make_sample, pack, lengths_of_rows, length):
    """Rows [B, S] of samples whose Part A and B have the given numbers of tokens."""
    rows = [
        pack([make_sample(seed, part_a=a, part_b=b) for seed, (a, b) in enumerate(row)], length)
        for row in lengths_of_rows
    ]
    return Batch(*(torch.cat(fields) for fields in zip(*rows, strict=True)))


LAYOUTS = {
    "short samples": [[(20, 9)] * 12, [(40, 3)] * 8],
    "uneven": [[(3, 2), (150, 40), (60, 9)], [(5, 380)]],
    "one prefix over all tiles": [[(300, 60)], [(10, 5)]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_tiles_give_outputs_and_gradients_of_the_exact_mask(
    make_sample, pack, layout, causal, kv_heads, monkeypatch
):
    monkeypatch.setattr(attention, "TILED_SHARE", 1.0)
    batch = packed_rows(make_sample, pack, LAYOUTS[layout], 400)
    ends = torch.zeros_like(batch.prefix_ends) if causal else batch.prefix_ends
    tiles = attention._plan_tiles(batch.segment_ids, ends)
    assert tiles
    dense = dense_attend(dense_mask(batch.segment_ids, ends)[:, None])
    tiled = attention._tiled_attend(batch.segment_ids, ends, tiles, dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    query, weight = torch.randn(2, 2, 4, 400, 16, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 2, kv_heads, 400, 16, generator=generator, dtype=torch.float64)
    found = []
    for attend in (dense, tiled):
        inputs = [states.clone().requires_grad_() for states in (query, key, value)]
        (attend(*inputs) * weight).sum().backward()
        found.append([attend(*inputs).detach(), *(states.grad for states in inputs)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_tiles_leave_out_keys_that_no_query_of_theirs_sees(make_sample, pack):
    batch = packed_rows(make_sample, pack, LAYOUTS["short samples"], 512)
    tiles = attention._plan_tiles(batch.segment_ids, batch.prefix_ends)
    mask = dense_mask(batch.segment_ids, batch.prefix_ends)
    for row, queries, keys in tiles:
        seen = mask[row, queries].any(0).nonzero()
        assert (keys.start, keys.stop) == (seen.min(), seen.max() + 1)
    assert sum(tile.num_pairs for tile in tiles) < 0.5 * mask.numel()


def test_rows_that_see_nearly_all_of_themselves_are_not_cut_into_tiles(make_sample, pack):
    batch = packed_rows(make_sample, pack, [[(500, 12)]], 512)
    assert attention._plan_tiles(batch.segment_ids, batch.prefix_ends) == []
