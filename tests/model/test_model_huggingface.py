"""Hugging Face's `glm` and `glm4`: equal numbers, and folders that go both ways without loss."""

import json
import struct
import time

import pytest
import torch
import transformers
from safetensors.torch import save_file

from glm_dist.errors import ModelError
from glm_dist.model import GLM, ModelSettings, build_model
from glm_dist.model.huggingface import (
    config_from_settings,
    our_shapes,
    renamed,
    settings_from_config,
    to_huggingface,
)
from glm_dist.model.weight_files import INDEX_FILE, WeightFolder, write_folder

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.15,
}
CLASSES = {
    "glm": (transformers.GlmConfig, transformers.GlmForCausalLM),
    "glm4": (transformers.Glm4Config, transformers.Glm4ForCausalLM),
}


def their_model(kind, **changes):
    config_class, model_class = CLASSES[kind]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SHAPE, **changes})).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model


def open_theirs(folder):
    """Our model of a folder of theirs."""
    settings = settings_from_config(json.loads((folder / "config.json").read_text()))
    model = GLM(settings).eval()
    weights = renamed(WeightFolder(folder), settings)
    model.load_state_dict({name: weights[name] for name in weights.shapes})
    return model


def our_logits(model, tokens, mask=None):
    length = tokens.shape[1]
    positions = torch.arange(length).expand_as(tokens)
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool).tril().expand(len(tokens), 1, -1, -1)
    hidden = model.hidden_states(tokens, positions, torch.zeros_like(tokens), mask)
    return model.logits(hidden)[..., : model.settings.vocab_size]


def prefix_mask(length, prefix):
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[:, :prefix] = True
    return mask.expand(2, 1, -1, -1)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("prefix", [0, 7])
def test_logits_and_gradients_equal_theirs(tmp_path, kind, bias, tied, prefix):
    theirs = their_model(kind, attention_bias=bias, tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = open_theirs(tmp_path / "theirs")
    # Without id 0, whose row their embedding keeps from learning as that of padding.
    tokens = torch.randint(1, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = prefix_mask(12, prefix)
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    expected = theirs(tokens, attention_mask=additive if prefix else None).logits
    actual = our_logits(ours, tokens, mask)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weight).sum().backward()
    (actual * weight).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in to_huggingface(
        ((n, p.grad) for n, p in ours.named_parameters()), ours.settings
    ):
        scale = gradients[name].abs().max().item()
        torch.testing.assert_close(parameter, gradients[name], rtol=1e-5, atol=1e-5 * max(1, scale))


@pytest.mark.parametrize("kind", CLASSES)
def test_bf16_stays_within_its_own_noise(tmp_path, kind):
    theirs = their_model(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = open_theirs(tmp_path / "theirs")
    tokens = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = theirs(tokens).logits
        noise = (theirs.bfloat16()(tokens).logits.float() - exact).abs().max()
        difference = (our_logits(ours.bfloat16(), tokens).float() - exact).abs().max()
    assert 0 < difference < 1.5 * noise


@pytest.mark.parametrize("kind", CLASSES)
def test_ours_to_theirs_and_back_is_bit_equal(tmp_path, kind):
    settings = ModelSettings(
        preset="glm-4-9b" if kind == "glm" else "glm-4-9b-0414",
        num_layers=2,
        hidden_size=48,
        num_heads=6,
        head_dim=16,
        ffn_hidden_size=80,
        vocab_size=90,
        pad_vocab_multiple=32,
        init_std=0.1,
    )
    ours = build_model(settings).eval()
    write_folder(
        tmp_path / "export",
        to_huggingface(iter(ours.state_dict().items()), settings),
        {"config.json": config_from_settings(settings, torch.float32, pad_token_id=0)},
        shard_bytes=20_000,
    )
    assert (tmp_path / "export" / INDEX_FILE).exists()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    assert type(theirs) is CLASSES[kind][1]
    tokens = torch.randint(0, 90, (2, 12), generator=torch.Generator().manual_seed(1))
    expected = our_logits(ours, tokens)
    torch.testing.assert_close(theirs(tokens).logits, expected, rtol=1e-5, atol=1e-5)
    theirs.save_pretrained(tmp_path / "again")
    again = open_theirs(tmp_path / "again")
    found = dict(to_huggingface(iter(again.state_dict().items()), again.settings))
    expected = dict(to_huggingface(iter(ours.state_dict().items()), settings))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", CLASSES)
def test_theirs_to_ours_and_back_is_bit_equal(tmp_path, kind):
    theirs = their_model(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = open_theirs(tmp_path / "theirs")
    weights = dict(to_huggingface(iter(ours.state_dict().items()), ours.settings))
    expected = {name: p.detach() for name, p in theirs.named_parameters()}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "older",
    [
        {"rope_theta": 5e4, "partial_rotary_factor": 0.5, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
    ],
)
def test_older_and_newer_fields_mean_the_same(older):
    config = {"model_type": "glm", **SHAPE, **older}
    assert settings_from_config(config).rotary_base == 5e4


def test_what_is_not_computed_here_is_refused_by_every_name():
    config = {"model_type": "glm", **SHAPE, "hidden_act": "gelu", "rope_scaling": {"type": "yarn"}}
    with pytest.raises(ModelError, match=r"hidden_act is 'gelu'.*rope_type is 'yarn'"):
        settings_from_config(config)
    with pytest.raises(ModelError, match="got 'llama'"):
        settings_from_config({**config, "model_type": "llama"})
    with pytest.raises(ModelError, match=r"positions is 'rotary_2d'.*causal is False.*bias is"):
        config_from_settings(ModelSettings(), torch.float32)


class Spoilt:
    """A good folder of two shards, to be spoilt."""

    def __init__(self, folder):
        shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "head_dim": 8}
        shape |= {"ffn_hidden_size": 16, "vocab_size": 32}
        self.settings = ModelSettings(preset="glm-4-9b", **shape)
        ours = build_model(self.settings).state_dict()
        weights = to_huggingface(iter(ours.items()), self.settings)
        self.folder = write_folder(folder, weights, {}, shard_bytes=4000)
        self.index = json.loads((folder / INDEX_FILE).read_text())

    def write_index(self):
        (self.folder / INDEX_FILE).write_text(json.dumps(self.index))

    def change(self, name, tensor):
        """Another tensor, or none, under this name."""
        file = self.folder / self.index["weight_map"][name]
        opened = WeightFolder(self.folder)
        kept = {n: opened[n] for n, f in self.index["weight_map"].items() if f == file.name}
        kept.pop(name)
        if tensor is None:
            self.index["weight_map"].pop(name)
            self.write_index()
        else:
            kept[name] = tensor
        save_file(kept, file)


Q = "model.layers.0.self_attn.q_proj.weight"


def wrong_shape(spoilt):
    spoilt.change(Q, torch.zeros(3, 16))
    return rf"{Q} is \[3, 16\] and should be \[16, 16\]"


def missing(spoilt):
    spoilt.change(Q, None)
    return f"{Q} is missing"


def extra(spoilt):
    file = "model-00009-of-00009.safetensors"
    save_file({"model.more": torch.zeros(1)}, spoilt.folder / file)
    spoilt.index["weight_map"]["model.more"] = file
    spoilt.write_index()
    return "model.more is unknown"


def pickled(spoilt):
    for path in spoilt.folder.iterdir():
        path.unlink()
    torch.save({}, spoilt.folder / "pytorch_model.bin")
    return r"pickled weights \(pytorch_model.bin\)"


def leaves_the_folder(spoilt):
    spoilt.index["weight_map"][Q] = "../elsewhere.safetensors"
    spoilt.write_index()
    return f"{Q} is said to lie in '../elsewhere.safetensors', outside"


def endless_header(spoilt):
    file = spoilt.folder / spoilt.index["weight_map"][Q]
    file.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    return f"{file.name}: cannot be read as safetensors"


@pytest.mark.parametrize(
    "spoil", [wrong_shape, missing, extra, pickled, leaves_the_folder, endless_header]
)
def test_a_spoilt_folder_is_refused_at_once_and_by_name(tmp_path, spoil):
    spoilt = Spoilt(tmp_path / "folder")
    message = spoil(spoilt)
    start = time.monotonic()
    with pytest.raises(ModelError, match=message):
        renamed(WeightFolder(spoilt.folder), spoilt.settings)
    assert time.monotonic() - start < 1
    assert our_shapes(spoilt.settings)
