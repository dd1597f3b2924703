import logging

import pytest
import torch

from glm_dist.model import attention, build_model
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
