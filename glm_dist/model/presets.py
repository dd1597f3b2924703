"""Named model shapes: every published GLM of 2021, and a small line for laptops.

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
    }
)
