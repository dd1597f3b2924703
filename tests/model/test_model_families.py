"""What later families do otherwise than 2021, against their formulae written out in float64."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from glm_dist.metrics.flops import training_flops
from glm_dist.model import GLM, ModelSettings, build_model
from glm_dist.model.attention import dense_attend
from glm_dist.model.positions import Rotary, angles_1d, angles_half, build_rotary
from glm_dist.train.flops import shape_of


def tiny_settings(**changes):
    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "vocab_size": 100}
    return ModelSettings(**{**shape, "init_std": 0.2, **changes})


def norm(x, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def heads_of(x, weight, bias, num_heads):
    """[S, hidden] to [heads, S, D]."""
    return (x @ weight.T + bias).unflatten(-1, (num_heads, -1)).transpose(0, 1)


def test_a_deepnorm_layer_with_geglu_is_the_formula_of_glm_130b():
    settings = tiny_settings(residual="deepnorm", mlp="geglu", positions="rotary_1d")
    layer = build_model(settings).double().transformer.layers[0]
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.ones_(layer.input_layernorm.weight)
    torch.nn.init.zeros_(layer.input_layernorm.bias)
    torch.nn.init.ones_(layer.post_attention_layernorm.weight)
    torch.nn.init.zeros_(layer.post_attention_layernorm.bias)
    x, alpha = torch.randn(5, 32, dtype=torch.float64), math.sqrt(2 * 2)

    normed, fused = norm(x), layer.attention.query_key_value
    query, key, value = (
        heads_of(normed, w, b, 4)
        for w, b in zip(fused.weight.chunk(3), fused.bias.chunk(3), strict=True)
    )
    shares = (query @ key.transpose(1, 2) / math.sqrt(8)).softmax(-1)
    hidden = alpha * normed + layer.attention.dense((shares @ value).transpose(0, 1).flatten(1))
    normed = norm(hidden)
    first, second = layer.mlp.dense_h_to_4h(normed).chunk(2, dim=-1)
    gelu = second * 0.5 * (1 + torch.erf(second / math.sqrt(2)))
    expected = alpha * normed + layer.mlp.dense_4h_to_h(first * gelu)

    actual = layer(x[None], dense_attend(None))[0]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_initial_weights_of_deepnorm_are_xaviers_with_its_gain():
    settings = tiny_settings(residual="deepnorm", num_layers=8, hidden_size=256, num_heads=8)
    layer = build_model(settings).transformer.layers[3]
    gain = (2 * 8) ** -0.5
    query, key, value = layer.attention.query_key_value.weight.chunk(3)
    for weight, factor in (
        (query, 1),
        (key, 1),
        (value, gain),
        (layer.attention.dense.weight, gain),
        (layer.mlp.dense_h_to_4h.weight, gain),
        (layer.mlp.dense_4h_to_h.weight, gain),
    ):
        expected = factor * math.sqrt(2 / sum(weight.shape))
        assert weight.std().item() == pytest.approx(expected, rel=0.02)


def rotated(rotary, states):
    seen = []
    rotary(lambda query, key, value: seen.append(query))(states, states, states)
    return seen[0]


@pytest.mark.parametrize("kind", ["rotary_1d", "rotary_half"])
def test_a_rotation_of_one_position_is_its_formula(kind):
    torch.manual_seed(0)
    states, positions = torch.randn(1, 3, 4, 16, dtype=torch.float64), [0, 3, 9, 9]
    build = angles_1d if kind == "rotary_1d" else angles_half
    rotary = Rotary(build(torch.tensor([positions]), 16, 10_000.0), torch.float64)
    actual = rotated(rotary, states)
    expected = states.clone()
    if kind == "rotary_1d":  # halves of the whole head
        pairs, width = [(i, i + 8) for i in range(8)], 16
    else:  # neighbours in the first half
        pairs, width = [(2 * i, 2 * i + 1) for i in range(4)], 8
    for place, position in enumerate(positions):
        for i, (a, b) in enumerate(pairs):
            angle = position * 10_000.0 ** (-2 * i / width)
            x, y = states[0, :, place, a], states[0, :, place, b]
            expected[0, :, place, a] = x * math.cos(angle) - y * math.sin(angle)
            expected[0, :, place, b] = y * math.cos(angle) + x * math.sin(angle)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["rotary_1d", "rotary_2d", "rotary_half"])
def test_scaled_rotation_reads_a_stretched_row_as_the_trained_one(kind):
    states = torch.randn(1, 2, 3, 8)
    places, blocks = torch.tensor([[0, 4, 8]]), torch.tensor([[0, 4, 12]])
    plain = tiny_settings(positions=kind)
    scaled = tiny_settings(positions=kind, rotary_scaling=4.0)
    stretched = rotated(build_rotary(scaled, places, blocks, torch.float32), states)
    trained = rotated(build_rotary(plain, places // 4, blocks // 4, torch.float32), states)
    torch.testing.assert_close(stretched, trained)


def test_grouped_keys_serve_neighbouring_query_heads():
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    value = torch.randn(1, 2, 5, 8)
    mixed = dense_attend(None)(query, key, value)
    for head in range(4):
        shares = (query[0, head] @ key[0, head // 2].T / math.sqrt(8)).softmax(-1)
        torch.testing.assert_close(mixed[0, head], shares @ value[0, head // 2])


def test_a_causal_model_does_not_look_ahead_in_part_a(make_sample):
    batch = make_sample(0, 11, 6)._replace(loss_mask=torch.ones(1, 17, dtype=torch.int32))
    changed = batch.tokens.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 100
    for causal in (True, False):
        model = build_model(tiny_settings(causal=causal)).eval()
        before = model(*batch).token_losses[0, :8]
        after = model(*batch._replace(tokens=changed)).token_losses[0, :8]
        assert torch.equal(before, after) is causal


@pytest.mark.parametrize("preset", ["glm-base", "glm-tiny", "glm-4-9b", "glm-130b"])
def test_the_flop_formula_counts_what_torch_counts(preset):
    settings = ModelSettings(
        preset=preset, num_layers=1, vocab_size=1024, attention="sdpa", hidden_dropout=0
    )
    settings = settings.model_copy(update={"attention_dropout": 0.0, "embedding_dropout": 0.0})
    with torch.device("meta"):
        model = GLM(settings)
        states = torch.randn(1, 64, settings.hidden_size)
        ids = torch.zeros(1, 64, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            hidden = model.transformer(states, ids, ids, _plain_attend)
            model.logits(hidden)
    expected = training_flops(shape_of(settings), 64, 64, 64 * 64) / 3
    assert counter.get_total_flops() == expected


def _plain_attend(query, key, value):
    times = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
    return (query @ key.transpose(-1, -2)).softmax(-1) @ value
