"""The settings of the transformer.

They stand apart from it so that configurations are read, checked and planned without torch.
"""

import difflib
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from glm_dist.config import Settings
from glm_dist.model.presets import DEFAULT_PRESET, PRESETS


class ModelSettings(Settings):
    """Shape and behaviour of a GLM; a preset gives the shape, fields set beside it win."""

    preset: str | None = DEFAULT_PRESET
    """Name of a published or small shape, or null to give every number here."""
    num_layers: int = Field(3, ge=1)
    """Transformer layers."""
    hidden_size: int = Field(192, ge=1)
    """Width of the residual stream; a multiple of num_heads."""
    num_heads: int = Field(4, ge=1)
    """Attention heads of each layer."""
    ffn_hidden_size: int = Field(768, ge=1)
    """Inner width of the MLP; by default four times hidden_size."""
    vocab_size: int = Field(4096, ge=1)
    """Token ids the model knows; a run sets it to that of its tokenizer."""
    pad_vocab_multiple: int = Field(128, ge=1)
    """Embedding rows are rounded up to a multiple of this, which matrix units like; the rows past
    vocab_size never get any probability."""
    positions: Literal["learned", "rotary_2d"] = "rotary_2d"
    """learned: a table for each of both positions, as in 2021; rotary_2d: half of each head turned
    by the position, half by the block position, as in ChatGLM-6B, which learns to look around a
    blank in a fraction of the steps."""
    rotary_base: float = Field(10_000.0, gt=1)
    """rotary_2d: longest wave length in tokens, over 2 pi."""
    max_position_embeddings: int = Field(512, ge=1)
    """Longest row in tokens; learned position tables have one row more."""
    embedding_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability of the summed embeddings."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability of attention weights; above 0 it rules flex attention out in training."""
    hidden_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability of the attention and MLP outputs, before each residual sum."""
    layernorm_epsilon: float = Field(1e-5, gt=0)
    """Added to the variance in every layer norm."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of initial weights; attention outputs and second MLP matrices get it
    divided by the square root of twice num_layers."""
    init_seed: int = Field(1234, ge=0)
    """Seed of the initial weights; each parameter draws from its own stream under this seed."""
    embedding_gradient_shrink: float = Field(1.0, gt=0, le=1)
    """Factor on the gradient that reaches the word embeddings through the input; GLM-130B used 0.1
    against loss spikes. 1 leaves it alone."""
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """sdpa: torch's fused attention with an exact mask; flex: flex attention, which skips blocks
    nobody sees; auto: flex on CUDA where it can be used, else sdpa."""
    loss_chunk_tokens: int = Field(1024, ge=1)
    """Tokens whose logits exist at one time; smaller needs less memory, larger runs faster."""
    activation_checkpointing: Literal["none", "full"] = "none"
    """full: keep only the input of each layer and compute the rest again in the backward pass,
    a third more time for a fraction of the memory."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        preset = data.get("preset", DEFAULT_PRESET)
        filled = {**_preset_values(preset), **data}
        hidden_size = filled.get("hidden_size", cls.model_fields["hidden_size"].default)
        if filled.get("ffn_hidden_size") is None and isinstance(hidden_size, int):
            filled["ffn_hidden_size"] = 4 * hidden_size
        return filled

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                f"the heads share it evenly, so change one of them"
            )
        if self.positions == "rotary_2d" and self.head_size % 4:
            raise ValueError(
                f"positions: rotary_2d turns pairs in two halves of a head, and heads of "
                f"{self.head_size} are not a multiple of 4; change hidden_size or num_heads"
            )
        if self.attention == "flex" and self.attention_dropout > 0:
            raise ValueError(
                f"attention: flex cannot drop attention weights, but attention_dropout is "
                f"{self.attention_dropout}; set it to 0, or attention to auto or sdpa"
            )
        return self

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the word embedding table."""
        return -(-self.vocab_size // self.pad_vocab_multiple) * self.pad_vocab_multiple

    @property
    def num_parameters(self) -> int:
        """Weights of the model, padded rows included; the tied head is counted once."""
        hidden, ffn = self.hidden_size, self.ffn_hidden_size
        attention = 4 * hidden * hidden + 4 * hidden
        mlp = 2 * hidden * ffn + ffn + hidden
        tables = self.padded_vocab_size
        if self.positions == "learned":
            tables += 2 * (self.max_position_embeddings + 1)
        return self.num_layers * (attention + mlp + 4 * hidden) + tables * hidden + 2 * hidden

    def with_vocab_size(self, vocab_size: int) -> Self:
        """The same model for a tokenizer of `vocab_size` ids."""
        return type(self)(**{**self.model_dump(), "vocab_size": vocab_size})

    def check_sequence_length(self, sequence_length: int) -> None:
        """Refuse rows that the position tables do not cover.

        Checked where a configuration is put together, because a look at the ids in every forward
        pass would make the device wait.

        Raises:
            ValueError: with both values and the remedy.
        """
        if sequence_length > self.max_position_embeddings:
            raise ValueError(
                f"sequence length {sequence_length} exceeds model.max_position_embeddings "
                f"{self.max_position_embeddings}; shorten the rows, or raise "
                f"model.max_position_embeddings for a model trained from scratch"
            )


def _preset_values(name: Any) -> Mapping[str, Any]:
    if name is None:
        return {}
    if name in PRESETS:
        return PRESETS[name]
    close = difflib.get_close_matches(str(name), PRESETS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(PRESETS)}"
    raise ValueError(f"preset {name!r} does not exist; {hint}")
