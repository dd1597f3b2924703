"""Keys and values of tokens already seen, so that decoding projects each token once.

It stands apart from attention: a layer attends through it without knowing that there is a past.
"""

from typing import Protocol, Self

import torch
from torch import Tensor

from glm_dist.errors import ModelError
from glm_dist.model.attention import Attend
from glm_dist.model.settings import ModelSettings


class Past(Protocol):
    """What layers attend through where there are tokens before those of a pass."""

    def attend(self, layer: int, attend: Attend) -> Attend:
        """`attend` over the past of `layer` and the new tokens."""

    def advance(self, num_tokens: int) -> None:
        """Count tokens that every layer has seen as past."""


class KVCache:
    """Preallocated keys and values [L, B, key heads, max tokens, D], filled up to `length`."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.length = 0

    @classmethod
    def allocate(
        cls,
        settings: ModelSettings,
        *,
        batch_size: int,
        max_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """An empty cache for `batch_size` rows of at most `max_tokens` tokens."""
        shape = (settings.num_layers, batch_size, settings.kv_heads, max_tokens)
        keys = torch.empty(*shape, settings.head_size, dtype=dtype, device=device)
        return cls(keys, torch.empty_like(keys))

    @property
    def max_tokens(self) -> int:
        """Tokens of a row that fit."""
        return self.keys.shape[3]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new tokens [B, H, S, D] behind the past; past and new ones together come back.

        Raises:
            ModelError: when they do not fit.
        """
        end = self.length + keys.shape[2]
        if end > self.max_tokens:
            raise ModelError(
                f"the key-value cache holds {self.max_tokens} tokens a row and {end} are needed; "
                f"allocate it for prompt and answer together"
            )
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Count tokens that every layer has appended as past."""
        self.length += num_tokens

    def attend(self, layer: int, attend: Attend) -> Attend:
        """`attend` over the past of `layer` and the new tokens."""

        def attend_with_past(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attend(query, *self.append(layer, key, value))

        return attend_with_past
