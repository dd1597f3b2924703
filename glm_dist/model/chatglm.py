"""Folders of ChatGLM2, ChatGLM3 and GLM-4 as their own modelling files wrote them.

Such a `config.json` says `"model_type": "chatglm"` and has field and weight names of its own
(GLM_SPEC 2.5); ChatGLM-6B says the same and is another model.
"""

import re
from collections.abc import Mapping
from typing import Any

from glm_dist.errors import ModelError
from glm_dist.model.settings import ModelSettings
from glm_dist.model.weight_files import RenamedWeights, WeightFolder

MODEL_TYPE = "chatglm"
ROTARY_BASE = 10_000.0
IGNORED = "transformer.rotary_pos_emb.inv_freq"
"""Frequencies that follow from the settings."""

_FIELDS = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "head_dim": "kv_channels",
    "ffn_hidden_size": "ffn_hidden_size",
    "vocab_size": "padded_vocab_size",
    "max_position_embeddings": "seq_length",
    "layernorm_epsilon": "layernorm_epsilon",
}
_EXPECTED = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "add_bias_linear": False,
}


def settings_from_config(config: Mapping[str, Any]) -> ModelSettings:
    """The settings of such a model.

    Raises:
        ModelError: naming each field that is missing or means something that is not computed here.
    """
    problems = [f"{field} is missing" for field in _FIELDS.values() if field not in config]
    problems += [
        f"{field} is {config[field]!r} and must be {wanted!r}"
        for field, wanted in _EXPECTED.items()
        if config.get(field, wanted) != wanted
    ]
    if problems:
        raise ModelError(f"config.json: {'; '.join(problems)}")
    groups = config.get("multi_query_group_num") if config.get("multi_query_attention") else None
    return ModelSettings(
        **{
            "preset": None,
            **{ours: config[theirs] for ours, theirs in _FIELDS.items()},
            "num_kv_heads": groups,
            "positions": "rotary_half",
            "rotary_base": ROTARY_BASE * config.get("rope_ratio", 1),
            "norm": "rmsnorm",
            "mlp": "swiglu",
            "bias": "qkv" if config.get("add_qkv_bias", False) else "none",
            "tied_embeddings": config.get("tie_word_embeddings", False),
            "causal": True,
            "pad_vocab_multiple": 1,
        }
    )


def renamed(folder: WeightFolder, shapes: dict[str, tuple[int, ...]]) -> RenamedWeights:
    """Their tensors under our names; `shapes` are those of our model's weights.

    Raises:
        ModelError: naming each tensor that is missing, unknown or of another shape.
    """
    ignored = {IGNORED: folder.shapes[IGNORED]} if IGNORED in folder.shapes else {}
    folder.check({_their_name(name): shape for name, shape in shapes.items()} | ignored)
    return RenamedWeights(folder, {name: [_their_name(name)] for name in shapes}, shapes)


def _their_name(name: str) -> str:
    if name == "word_embeddings.weight":
        return f"transformer.embedding.{name}"
    if name == "output_layer.weight":
        return f"transformer.{name}"
    name = name.replace("transformer.", "transformer.encoder.", 1)
    return re.sub(r"\.attention\.", ".self_attention.", name)
