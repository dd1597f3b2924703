"""Folders of ChatGLM2, ChatGLM3 and GLM-4 in their own layout are the models transformers has."""

import json

import pytest
import torch
import transformers

from glm_dist.engine.export import import_model
from glm_dist.errors import ModelError
from glm_dist.inference.load import read_model
from glm_dist.model import chatglm
from glm_dist.model.weight_files import write_folder

CONFIG = {
    "model_type": "chatglm",
    "num_layers": 2,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "kv_channels": 16,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "ffn_hidden_size": 80,
    "padded_vocab_size": 96,
    "seq_length": 64,
    "layernorm_epsilon": 1e-5,
    "add_qkv_bias": True,
    "rmsnorm": True,
    "rope_ratio": 50,
}


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = transformers.GlmConfig(
        num_hidden_layers=2,
        hidden_size=48,
        num_attention_heads=6,
        head_dim=16,
        num_key_value_heads=2,
        intermediate_size=80,
        vocab_size=96,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        attention_bias=True,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 500_000.0,
            "partial_rotary_factor": 0.5,
        },
        initializer_range=0.15,
        pad_token_id=None,
    )
    return transformers.GlmForCausalLM(config).eval()


def in_their_own_layout(state):
    """GLM_SPEC 2.5, from right to left."""
    found = {
        "transformer.embedding.word_embeddings.weight": state["model.embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": state["model.norm.weight"],
        "transformer.output_layer.weight": state["lm_head.weight"],
        "transformer.rotary_pos_emb.inv_freq": torch.ones(4),
    }
    for layer in range(2):
        old, new = f"transformer.encoder.layers.{layer}", f"model.layers.{layer}"
        for kind in ("weight", "bias"):
            parts = [state[f"{new}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{old}.self_attention.query_key_value.{kind}"] = torch.cat(parts)
        for theirs, ours in {
            "input_layernorm": "input_layernorm",
            "post_attention_layernorm": "post_attention_layernorm",
            "self_attention.dense": "self_attn.o_proj",
            "mlp.dense_h_to_4h": "mlp.gate_up_proj",
            "mlp.dense_4h_to_h": "mlp.down_proj",
        }.items():
            found[f"{old}.{theirs}.weight"] = state[f"{new}.{ours}.weight"]
    return found


def test_logits_are_those_of_the_same_weights_in_transformers(tmp_path, theirs):
    weights = in_their_own_layout(theirs.state_dict())
    write_folder(tmp_path / "old", iter(weights.items()), {"config.json": CONFIG})
    import_model(tmp_path / "old", tmp_path / "ours")
    ours = read_model(tmp_path / "ours")
    tokens = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    places = torch.arange(12).expand(2, 12)
    mask = torch.ones(12, 12, dtype=torch.bool).tril()
    with torch.no_grad():
        hidden = ours.hidden_states(tokens, places, torch.zeros_like(places), mask)
        actual, expected = ours.logits(hidden), theirs(tokens).logits
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_what_is_another_model_is_refused_by_every_field(tmp_path):
    first = {**CONFIG, "rmsnorm": False, "add_bias_linear": True}
    del first["kv_channels"]
    with pytest.raises(ModelError, match=r"kv_channels is missing; rmsnorm is False.*add_bias"):
        chatglm.settings_from_config(first)


def test_a_missing_tensor_is_named(tmp_path, theirs):
    weights = in_their_own_layout(theirs.state_dict())
    weights.pop("transformer.output_layer.weight")
    write_folder(tmp_path / "old", iter(weights.items()), {"config.json": CONFIG})
    assert json.loads((tmp_path / "old" / "config.json").read_text())["model_type"] == "chatglm"
    with pytest.raises(ModelError, match=r"transformer.output_layer.weight is missing"):
        import_model(tmp_path / "old", tmp_path / "ours")
