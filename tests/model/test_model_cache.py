import pytest
import torch

from glm_dist.errors import ModelError
from glm_dist.model import KVCache, build_model
from glm_dist.objective import dense_mask

PART_A, PART_B = 11, 6


@pytest.fixture
def model(tiny):
    return build_model(tiny(init_std=0.2)).eval()


def whole(model, batch):
    mask = dense_mask(batch.segment_ids, batch.prefix_ends)[:, None]
    return model.hidden_states(batch.tokens, batch.position_ids, batch.block_position_ids, mask)


def part(model, batch, start, end, cache, mask=None):
    fields = (batch.tokens, batch.position_ids, batch.block_position_ids)
    return model.hidden_states(*(field[:, start:end] for field in fields), mask, cache)


@torch.no_grad()
def test_decoding_token_by_token_equals_the_uncached_forward(model, make_sample, tiny):
    batch = make_sample(3, PART_A, PART_B)
    cache = KVCache.allocate(tiny(), batch_size=1, max_tokens=PART_A + PART_B)
    steps = [part(model, batch, 0, PART_A, cache)]
    for place in range(PART_A, PART_A + PART_B):
        steps.append(part(model, batch, place, place + 1, cache))
    assert cache.length == PART_A + PART_B
    torch.testing.assert_close(torch.cat(steps, dim=1), whole(model, batch), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_several_new_tokens_at_once_equal_the_uncached_forward(model, make_sample, tiny):
    batch = make_sample(4, PART_A, PART_B)
    cache = KVCache.allocate(tiny(), batch_size=1, max_tokens=64)
    part(model, batch, 0, PART_A, cache)
    mask = dense_mask(batch.segment_ids, batch.prefix_ends)[:, None, PART_A:]
    hidden = part(model, batch, PART_A, PART_A + PART_B, cache, mask)
    torch.testing.assert_close(hidden, whole(model, batch)[:, PART_A:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_overfull_cache_says_what_it_holds_and_what_is_needed(model, make_sample, tiny):
    batch = make_sample(5, PART_A, PART_B)
    cache = KVCache.allocate(tiny(), batch_size=1, max_tokens=PART_A + 1)
    part(model, batch, 0, PART_A, cache)
    with pytest.raises(ModelError, match=f"holds {PART_A + 1} tokens .* {PART_A + 3}"):
        part(model, batch, PART_A, PART_A + 3, cache)


def test_logits_of_padded_columns_are_minus_infinity(model):
    logits = model.logits(torch.randn(2, 3, 32))
    assert logits.shape == (2, 3, 128)
    assert (logits[..., 100:] == -torch.inf).all()
    assert torch.isfinite(logits[..., :100]).all()
