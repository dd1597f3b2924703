"""Trained keys and values: seen by all tokens of all samples, in packed rows and beside a cache."""

import pytest
import torch

from glm_dist.model import KVCache, build_model
from glm_dist.model.attention import build_attend, dense_attend
from glm_dist.model.prefix import PrefixEncoder, prefixed
from glm_dist.model.tuning import apply_tuning
from glm_dist.model.tuning_settings import TuningSettings
from glm_dist.objective import dense_mask

TUNING = TuningSettings(kind="p_tuning", num_prefix_tokens=5)


@pytest.fixture
def model(tiny):
    return apply_tuning(build_model(tiny(init_std=0.2)), TUNING).eval()


def test_attention_is_the_formula_over_both_kinds_of_keys_in_float64():
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 6, 8, dtype=torch.float64, generator=generator)
    key, value = key[:, :1], value[:, :1]  # both query heads share one key head
    prefix = torch.randn(2, 1, 3, 8, dtype=torch.float64, generator=generator)
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    mask = torch.cat((seen, torch.ones(6, 3, dtype=torch.bool)), dim=1)
    found = prefixed(dense_attend(mask), prefix)(query, key, value)
    for row in range(2):
        for head in range(2):
            scores = query[row, head] @ torch.cat((key[row, 0], prefix[0, 0])).T / 8**0.5
            weights = torch.where(mask, scores.exp(), 0)
            weights = weights / weights.sum(1, keepdim=True)
            expected = weights @ torch.cat((value[row, 0], prefix[1, 0]))
            torch.testing.assert_close(found[row, head], expected)


def test_packed_samples_see_the_prefix_and_not_one_another(model, make_sample, pack):
    samples = [make_sample(seed, part_a=7 + seed, part_b=4) for seed in range(3)]
    packed = model(*pack(samples, 60))
    alone = [model(*sample) for sample in samples]
    torch.testing.assert_close(packed.loss_sum, sum(output.loss_sum for output in alone))
    with torch.no_grad():
        model.prefix_encoder.embedding.weight.zero_()
    assert (packed.loss_sum - model(*pack(samples, 60)).loss_sum).abs() > 1e-2


@torch.no_grad()
def test_decoding_beside_a_cache_equals_the_whole_forward(model, make_sample, tiny):
    batch = make_sample(3, 11, 6)
    fields = (batch.tokens, batch.position_ids, batch.block_position_ids)
    mask = dense_mask(batch.segment_ids, batch.prefix_ends)[:, None]
    whole = model.hidden_states(*fields, mask)
    cache = KVCache.allocate(tiny(), batch_size=1, max_tokens=17)
    cuts = [0, *range(11, 18)]
    parts = [
        model.hidden_states(*(f[:, a:b] for f in fields), None, cache)
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("num_tokens", [5, 128, 130])
@torch.no_grad()
def test_flex_attention_sees_the_prefix_too(tiny, make_sample, pack, num_tokens):
    batch = pack([make_sample(seed, part_a=20 + seed, part_b=9) for seed in range(3)], 128)
    query, key, value = torch.randn(3, 1, 2, 128, 16).unbind(0)
    prefix = torch.randn(2, 2, num_tokens, 16)
    given = (batch.segment_ids, batch.prefix_ends, False, num_tokens)
    flex = prefixed(build_attend(tiny(attention="flex"), *given), prefix)
    exact = prefixed(build_attend(tiny(attention="sdpa"), *given), prefix)
    torch.testing.assert_close(flex(query, key, value), exact(query, key, value))


def test_a_projected_prefix_has_the_same_shape(tiny):
    settings = tiny()
    shape = (settings.num_layers, 2, settings.kv_heads, 5, settings.head_size)
    for projection in (False, True):
        encoder = PrefixEncoder(settings, 5, projection)
        assert encoder().shape == shape
        assert torch.equal(
            encoder()[1, 0, 0, 3], encoder.flat()[3].view(shape[:3] + (-1,))[1, 0, 0]
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kernel", ["flex", "sdpa"])
def test_cuda_kernels_give_the_losses_and_gradients_of_the_cpu(tiny, make_sample, pack, kernel):
    batch = pack([make_sample(seed, part_a=20 + seed, part_b=9) for seed in range(3)], 128)
    here = apply_tuning(build_model(tiny()), TUNING)
    there = apply_tuning(build_model(tiny(attention=kernel)), TUNING).cuda()
    expected, found = here(*batch).loss_sum, there(*batch.to("cuda")).loss_sum
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
    expected.backward()
    found.backward()
    gradients = [m.prefix_encoder.embedding.weight.grad.cpu() for m in (there, here)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
