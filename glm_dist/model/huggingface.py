"""Models in the layout of Hugging Face's `glm` and `glm4` classes, both ways, tensor by tensor.

Field and weight names are those of GLM_SPEC 2.4 and 2.5; nothing of transformers is imported.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_dist.errors import ModelError
from glm_dist.model.head_config import class_suffix, head_fields, read_head
from glm_dist.model.settings import ModelSettings
from glm_dist.model.transformer import GLM
from glm_dist.model.weight_files import RenamedWeights, WeightFolder

FAMILIES = {"glm": "Glm", "glm4": "Glm4"}
"""How the names of transformers' classes begin, by `model_type`."""
ROTATED_SHARE = 0.5

_NAMES = {
    "word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
    "score.weight": "score.weight",
    "score.bias": "score.bias",
}
_LAYER_NAMES = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "attention_output_layernorm.weight": "post_self_attn_layernorm.weight",
    "mlp_output_layernorm.weight": "post_mlp_layernorm.weight",
    "attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}
_FIELDS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "layernorm_epsilon": "rms_norm_eps",
    "init_std": "initializer_range",
    "attention_dropout": "attention_dropout",
    "tied_embeddings": "tie_word_embeddings",
}
_BLOCK = {
    "positions": "rotary_half",
    "norm": "rmsnorm",
    "mlp": "swiglu",
    "residual": "pre_norm",
    "causal": True,
    "query_key_norm": False,
    "embedding_dropout": 0.0,
    "hidden_dropout": 0.0,
}
"""What both classes take for granted."""


def settings_from_config(config: Mapping[str, Any]) -> ModelSettings:
    """The settings of a model that `config.json` describes, in today's fields or in older ones.

    Raises:
        ModelError: naming each field that has no counterpart here.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ModelError(
            f"model_type: got {kind!r}, this reads {', '.join(FAMILIES)}, chatglm and what "
            "it wrote itself; convert other models with their own tools first"
        )
    rope = {**config, **(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    share = rope.get("partial_rotary_factor", ROTATED_SHARE)
    scaling = rope.get("rope_type", rope.get("type", "default"))
    problems = [f"{field} is missing" for field in _FIELDS.values() if field not in _given(config)]
    if config.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act is {config['hidden_act']!r} and must be 'silu'")
    if share != ROTATED_SHARE:
        problems.append(f"partial_rotary_factor is {share} and must be {ROTATED_SHARE}")
    if scaling not in ("default", "linear"):
        problems.append(f"rope_type is {scaling!r}; only 'default' and 'linear' are computed here")
    if problems:
        raise ModelError(f"config.json: {'; '.join(problems)}")
    given = _given(config)
    return ModelSettings(
        **{
            "preset": None,
            **_BLOCK,
            **{ours: given[theirs] for ours, theirs in _FIELDS.items()},
            "num_kv_heads": config.get("num_key_value_heads"),
            "head_dim": config.get("head_dim"),
            "bias": "qkv" if config.get("attention_bias", True) else "none",
            "rotary_base": float(rope.get("rope_theta", 10_000.0)),
            "rotary_scaling": float(rope.get("factor", 1.0)),
            "sandwich_norm": kind == "glm4",
            "pad_vocab_multiple": 1,
            "head": read_head(config),
        }
    )


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config's fields with the defaults of those that files leave out."""
    defaults = {
        "rms_norm_eps": 1.5625e-7 if config.get("model_type") == "glm" else 1e-5,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
    }
    return {**defaults, **config}


def config_from_settings(
    settings: ModelSettings, dtype: torch.dtype, **special_ids: Any
) -> dict[str, Any]:
    """`config.json` of a model; `special_ids` are fields such as `eos_token_id`.

    Raises:
        ModelError: naming each setting that neither class can express.
    """
    problems = [
        f"{name} is {getattr(settings, name)!r} and must be {wanted!r}"
        for name, wanted in _BLOCK.items()
        if getattr(settings, name) != wanted
    ]
    if settings.bias == "all":
        problems.append("bias is 'all' and must be 'qkv' or 'none'")
    if settings.head.kind == "sequence_classification" and settings.pools_first:
        problems.append("head.pooling is 'first' and must be 'last'")
    if problems:
        raise ModelError(
            f"no Hugging Face class computes this model: {'; '.join(problems)}; train a causal "
            "preset such as glm-4-9b's block for such an export"
        )
    kind = "glm4" if settings.sandwich_norm else "glm"
    rope: dict[str, Any] = {
        "rope_type": "default" if settings.rotary_scaling == 1 else "linear",
        "rope_theta": settings.rotary_base,
        "partial_rotary_factor": ROTATED_SHARE,
    }
    if settings.rotary_scaling != 1:
        rope["factor"] = settings.rotary_scaling
    return {
        "architectures": [FAMILIES[kind] + class_suffix(settings)],
        "model_type": kind,
        **head_fields(settings),
        **{theirs: getattr(settings, ours) for ours, theirs in _FIELDS.items()},
        "num_key_value_heads": settings.kv_heads,
        "head_dim": settings.head_size,
        "attention_bias": settings.bias == "qkv",
        "hidden_act": "silu",
        "rope_parameters": rope,
        "use_cache": True,
        "dtype": str(dtype).removeprefix("torch."),
        **special_ids,
    }


PREFIX_FILE = "modeling_glm_prefix.py"
PREFIX_TYPE = "glm_prefix"
"""`model_type` of what that file computes."""
_PREFIX_FIELDS = (
    "num_layers",
    "hidden_size",
    "num_heads",
    "ffn_hidden_size",
    "vocab_size",
    "max_position_embeddings",
    "mlp",
    "norm",
    "residual",
    "sandwich_norm",
    "query_key_norm",
    "bias",
    "tied_embeddings",
    "positions",
    "rotary_base",
    "rotary_scaling",
    "layernorm_epsilon",
    "causal",
)


def prefix_config(
    settings: ModelSettings, dtype: torch.dtype, **special_ids: Any
) -> dict[str, Any]:
    """`config.json` of any model of ours, for the modelling file that is exported beside it."""
    module, suffix = PREFIX_FILE.removesuffix(".py"), class_suffix(settings)
    name = f"GLMPrefix{suffix}" if settings.head.is_classifier else "GLMPrefixModel"
    pooling = "first" if settings.pools_first else "last"
    return {
        "architectures": [name],
        "model_type": PREFIX_TYPE,
        "auto_map": {
            "AutoConfig": f"{module}.GLMPrefixConfig",
            "AutoModel": f"{module}.{name}",
            f"AutoModel{suffix}": f"{module}.{name}",
        },
        **head_fields(settings),
        **({"pooling": pooling} if settings.head.is_classifier else {}),
        **{name: getattr(settings, name) for name in _PREFIX_FIELDS},
        "num_kv_heads": settings.kv_heads,
        "head_dim": settings.head_size,
        "dtype": str(dtype).removeprefix("torch."),
        **special_ids,
    }


def prefix_settings(config: Mapping[str, Any]) -> ModelSettings:
    """The settings of a model that `prefix_config` described.

    Raises:
        ModelError: naming each field that is missing.
    """
    names = (*_PREFIX_FIELDS, "num_kv_heads", "head_dim")
    missing = [name for name in names if name not in config]
    if missing:
        raise ModelError(f"config.json: {', '.join(missing)} is missing")
    fields = {name: config[name] for name in names}
    return ModelSettings(preset=None, pad_vocab_multiple=1, head=read_head(config), **fields)


def prefix_source() -> str:
    """The modelling file, which needs nothing of this package."""
    return (Path(__file__).parent / PREFIX_FILE).read_text(encoding="utf-8")


def without_padding(
    weights: Iterator[tuple[str, Tensor]], settings: ModelSettings
) -> Iterator[tuple[str, Tensor]]:
    """Our tensors under their own names, rows past the vocabulary left out."""
    for name, tensor in weights:
        is_table = name in ("word_embeddings.weight", "output_layer.weight")
        yield name, tensor[: settings.vocab_size] if is_table else tensor


def to_huggingface(
    weights: Iterator[tuple[str, Tensor]], settings: ModelSettings
) -> Iterator[tuple[str, Tensor]]:
    """Our tensors under their names: queries, keys and values parted, padded rows left out."""
    for name, tensor in without_padding(weights, settings):
        theirs = their_names(name)
        rows = output_rows(theirs, len(tensor), settings)
        yield from zip(theirs, tensor.split(rows), strict=True)


def renamed(folder: WeightFolder, settings: ModelSettings) -> RenamedWeights:
    """Their tensors under our names.

    Raises:
        ModelError: naming each tensor that is missing, unknown or of another shape.
    """
    shapes = our_shapes(settings)
    folder.check(dict(_their_shapes(shapes, settings)))
    return RenamedWeights(folder, {name: their_names(name) for name in shapes}, shapes)


def our_shapes(settings: ModelSettings) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's weights by name, without making any."""
    with torch.device("meta"):
        return {name: tuple(w.shape) for name, w in GLM(settings).state_dict().items()}


def _their_shapes(
    shapes: Mapping[str, tuple[int, ...]], settings: ModelSettings
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in shapes.items():
        theirs = their_names(name)
        rows = output_rows(theirs, shape[0], settings)
        for their_name, num_rows in zip(theirs, rows, strict=True):
            yield their_name, (num_rows, *shape[1:])


def their_names(name: str) -> list[str]:
    """What one of our tensors is called there: one name, or three that share its rows."""
    if name in _NAMES:
        return [_NAMES[name]]
    match = re.fullmatch(r"transformer\.layers\.(\d+)\.(.+)", name)
    assert match is not None, f"{name} is a weight of no Hugging Face class"
    prefix, rest = f"model.layers.{match[1]}", match[2]
    if rest in _LAYER_NAMES:
        return [f"{prefix}.{_LAYER_NAMES[rest]}"]
    kind = rest.removeprefix("attention.query_key_value.")
    return [f"{prefix}.self_attn.{part}_proj.{kind}" for part in "qkv"]


def output_rows(theirs: list[str], num_rows: int, settings: ModelSettings) -> list[int]:
    """Rows that each of their tensors takes of one of ours: all, or of queries, keys and values."""
    if len(theirs) == 1:
        return [num_rows]
    size = settings.head_size
    return [settings.num_heads * size, settings.kv_heads * size, settings.kv_heads * size]
