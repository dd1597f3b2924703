"""Rotary 2-D positions against the formula of ChatGLM-6B written out, and what they must keep."""

import math

import pytest
import torch

from glm_dist.model import ModelSettings, build_model
from glm_dist.model.positions import Rotary, angles_2d
from glm_dist.objective import dense_mask

PART_A, PART_B = 11, 6


SETTINGS = ModelSettings(
    num_layers=2, hidden_size=32, num_heads=2, vocab_size=100, init_std=0.2, positions="rotary_2d"
)


def written_out(states, positions, base=10_000.0):
    """One head [S, D]: the two halves of an axis turn together, element by element."""
    size = states.shape[-1] // 2
    turned = states.clone()
    for place, axes in enumerate(zip(*positions, strict=True)):
        for axis, position in enumerate(axes):
            for i in range(size // 2):
                angle = position * base ** (-2 * i / size)
                a, b = axis * size + i, axis * size + size // 2 + i
                x, y = float(states[place, a]), float(states[place, b])
                turned[place, a] = x * math.cos(angle) - y * math.sin(angle)
                turned[place, b] = y * math.cos(angle) + x * math.sin(angle)
    return turned


def test_the_rotation_is_the_formula_in_float64():
    torch.manual_seed(0)
    query, key = torch.randn(2, 5, 12, dtype=torch.float64)
    positions = [3, 0, 7, 7, 7], [0, 0, 1, 2, 3]
    ids = [torch.tensor([axis]) for axis in positions]
    seen = {}

    def attend(*inputs):
        seen["inputs"] = inputs
        return inputs[2]

    value = torch.randn(1, 1, 5, 12, dtype=torch.float64)
    rotary = Rotary(angles_2d(*ids, 12, 10_000.0), torch.float64)
    rotary(attend)(query[None, None], key[None, None], value)
    for got, plain in zip(seen["inputs"], (query, key), strict=False):
        torch.testing.assert_close(got[0, 0], written_out(plain, positions), rtol=0, atol=1e-6)
    assert seen["inputs"][2] is value


@torch.no_grad()
def test_only_distances_count(make_sample):
    model = build_model(SETTINGS).eval()
    batch = make_sample(3, PART_A, PART_B)
    mask = dense_mask(batch.segment_ids, batch.prefix_ends)[:, None]
    blocks = batch.block_position_ids
    here = model.hidden_states(batch.tokens, batch.position_ids, blocks, mask)
    moved = model.hidden_states(batch.tokens, batch.position_ids + 17, blocks, mask)
    torch.testing.assert_close(moved, here, rtol=1e-4, atol=1e-4)
    flat = model.hidden_states(batch.tokens, torch.zeros_like(batch.position_ids), blocks, mask)
    assert (flat - here).abs().max() > 0.1


def test_there_are_no_position_tables_and_the_count_says_so():
    parameters = dict(build_model(SETTINGS, device="meta").named_parameters())
    assert not [name for name in parameters if "position" in name]
    assert SETTINGS.num_parameters == sum(weight.numel() for weight in parameters.values())


def test_heads_that_cannot_be_turned_are_refused():
    with pytest.raises(ValueError, match="heads of 6 are not a multiple of 4"):
        ModelSettings(hidden_size=12, num_heads=2, positions="rotary_2d")
