"""Named model shapes: the published dense GLMs, and two lines of our own.

They stand apart as plain data, so that a configuration is checked without importing torch.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Preset = Mapping[str, Any]
"""Values of `ModelSettings` fields; those left out follow from the others or keep their default."""


def _shape(
    layers: int,
    hidden: int,
    heads: int,
    *,
    vocabulary: int,
    longest: int,
    dropout: float,
    positions: str,
) -> Preset:
    shape = {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_heads": heads,
        "vocab_size": vocabulary,
        "positions": positions,
        "max_position_embeddings": longest,
        "embedding_dropout": dropout,
        "attention_dropout": dropout,
        "hidden_dropout": dropout,
    }
    return MappingProxyType(shape)


def _published(layers: int, hidden: int, heads: int, vocabulary: int, longest: int) -> Preset:
    """A model of the GLM paper and its repository; all were trained with dropout 0.1."""
    return _shape(
        layers,
        hidden,
        heads,
        vocabulary=vocabulary,
        longest=longest,
        dropout=0.1,
        positions="learned",
    )


def _small(layers: int, hidden: int, heads: int, vocabulary: int) -> Preset:
    """A shape of our own, for text that is seen once or twice.

    Dropout would only slow it down, and with rotary positions it looks around a blank early.
    """
    return _shape(
        layers,
        hidden,
        heads,
        vocabulary=vocabulary,
        longest=512,
        dropout=0.0,
        positions="rotary_2d",
    )


def _modern(layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, longest: int) -> Preset:
    """A shape of our own: the objective of 2021 on today's block, with heads of 64 or 128."""
    return MappingProxyType(
        {
            "num_layers": layers,
            "hidden_size": hidden,
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "ffn_hidden_size": ffn,
            "vocab_size": 32768,
            "positions": "rotary_2d",
            "max_position_embeddings": longest,
            "norm": "rmsnorm",
            "mlp": "swiglu",
            "bias": "none",
        }
    )


def _post_norm(
    layers: int, hidden: int, heads: int, ffn: int, vocabulary: int, **changes: Any
) -> Preset:
    """The DeepNorm block that GLM-130B and ChatGLM-6B share; both read 2,048 tokens."""
    return MappingProxyType(
        {
            "num_layers": layers,
            "hidden_size": hidden,
            "num_heads": heads,
            "ffn_hidden_size": ffn,
            "vocab_size": vocabulary,
            "max_position_embeddings": 2048,
            "residual": "deepnorm",
            **changes,
        }
    )


def _causal(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    **changes: Any,
) -> Preset:
    """The causal block of ChatGLM2 and all later dense models, with heads of 128."""
    return MappingProxyType(
        {
            "num_layers": layers,
            "hidden_size": hidden,
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": 128,
            "ffn_hidden_size": ffn,
            "vocab_size": 151552,
            "positions": "rotary_half",
            "norm": "rmsnorm",
            "mlp": "swiglu",
            "bias": "qkv",
            "tied_embeddings": False,
            "causal": True,
            **changes,
        }
    )


def _chatglm(longest: int) -> Preset:
    """ChatGLM2-6B and ChatGLM3-6B, which differ in their training alone."""
    return _causal(28, 4096, 32, 2, 13696, vocab_size=65024, max_position_embeddings=longest)


DEFAULT_PRESET = "glm-demo"

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "glm-demo": _small(3, 192, 4, 4096),
        "glm-mini": _small(6, 320, 5, 8192),
        "glm-small": _small(8, 512, 8, 8192),
        "glm-base": _published(12, 768, 12, 30592, 512),
        "glm-large": _published(24, 1024, 16, 30592, 512),
        "glm-410m": _published(30, 1024, 16, 30592, 512),
        "glm-515m": _published(30, 1152, 18, 30592, 512),
        "glm-roberta-large": _published(24, 1024, 16, 50304, 512),
        "glm-large-chinese": _published(24, 1024, 16, 50048, 1024),
        "glm-2b": _published(36, 2048, 32, 50304, 1024),
        "glm-10b": _published(48, 4096, 64, 50304, 1024),
        "glm-10b-chinese": _published(48, 4096, 64, 50048, 1024),
        "glm-tiny": _modern(4, 256, 4, 2, 704, 512),
        "glm-30m": _modern(8, 448, 7, 1, 1216, 1024),
        "glm-110m": _modern(12, 768, 12, 4, 2048, 1024),
        "glm-350m": _modern(24, 1024, 16, 4, 2816, 2048),
        "glm-1b": _modern(24, 2048, 16, 4, 5632, 4096),
        "glm-3b": _modern(32, 2816, 22, 2, 7552, 4096),
        "glm-9b": _modern(40, 4096, 32, 4, 13696, 8192),
        "glm-130b": _post_norm(
            70, 12288, 96, 32768, 150528, mlp="geglu", positions="rotary_1d", init_std=0.0052
        ),
        "chatglm-6b": _post_norm(
            28,
            4096,
            32,
            16384,
            130528,
            positions="rotary_2d",
            tied_embeddings=False,
            pad_vocab_multiple=32,
        ),
        "chatglm2-6b": _chatglm(32768),
        "chatglm3-6b": _chatglm(8192),
        "glm-4-9b": _causal(
            40,
            4096,
            32,
            2,
            13696,
            max_position_embeddings=131072,
            layernorm_epsilon=1.5625e-7,
            rotary_base=5e6,
        ),
        "glm-4-9b-0414": _causal(
            40, 4096, 32, 2, 13696, max_position_embeddings=32768, sandwich_norm=True
        ),
        "glm-4-32b-0414": _causal(
            61,
            6144,
            48,
            8,
            23040,
            max_position_embeddings=32768,
            sandwich_norm=True,
            bias="none",
        ),
    }
)

PROPOSED_PRESETS = tuple(list(PRESETS)[: list(PRESETS).index("glm-tiny")])
"""Those that a corpus is measured against where no model is named: the small ones and 2021's."""
