"""The settings of the transformer.

They stand apart from it so that configurations are read, checked and planned without torch.
"""

import difflib
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from glm_dist.config import Settings
from glm_dist.model.presets import DEFAULT_PRESET, PRESETS

_ROTARY_DIVISORS = {"rotary_1d": 2, "rotary_2d": 4, "rotary_half": 4}


class HeadSettings(Settings):
    """What the model makes of its last hidden states."""

    kind: Literal["language_model", "sequence_classification", "token_classification"] = (
        "language_model"
    )
    """language_model: the next token; sequence_classification: a label of one pooled token of each
    sample; token_classification: a label of each token. Labels are scored by one linear map."""
    labels: list[str] = []
    """Names of the labels of a classification, in the order of their ids."""
    multi_label: bool = False
    """Each label is there or not, by itself; else there is exactly one."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout probability of the hidden states that labels are scored from."""
    pooling: Literal["auto", "first", "last"] = "auto"
    """sequence_classification: the token whose hidden state is taken. auto: the first, [ENC], where
    it sees the whole text, and the last where the model is causal."""

    @property
    def is_classifier(self) -> bool:
        """Whether labels are scored, and no tokens."""
        return self.kind != "language_model"

    def scores_like(self, other: "HeadSettings") -> bool:
        """Whether a head of those settings can be taken for one of these."""
        return (self.kind, self.labels, self.multi_label) == (
            other.kind,
            other.labels,
            other.multi_label,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        least = 1 if self.multi_label else 2
        if self.is_classifier and (len(self.labels) < least or len(set(self.labels)) < least):
            raise ValueError(
                f"labels: got {self.labels} with kind {self.kind}, which needs at least {least}; "
                "name them in the order of their ids"
            )
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels: {self.labels} names a label twice; name each once")
        if self.labels and not self.is_classifier:
            raise ValueError(
                "labels: are given, but kind is language_model; set kind: sequence_classification "
                "or token_classification, or leave them out"
            )
        return self


class ModelSettings(Settings):
    """Shape and behaviour of a GLM; a preset gives the shape, fields set beside it win."""

    preset: str | None = DEFAULT_PRESET
    """Name of a published or small shape, or null to give every number here."""
    num_layers: int = Field(3, ge=1)
    """Transformer layers."""
    hidden_size: int = Field(192, ge=1)
    """Width of the residual stream; a multiple of num_heads unless head_dim is given."""
    num_heads: int = Field(4, ge=1)
    """Attention heads of each layer."""
    num_kv_heads: int | None = Field(None, ge=1)
    """Key and value heads, each shared by as many query heads (grouped-query attention); null: one
    for each query head."""
    head_dim: int | None = Field(None, ge=1)
    """Width of one attention head; null: hidden_size shared evenly by the heads."""
    ffn_hidden_size: int = Field(768, ge=1)
    """Inner width of the MLP; by default four times hidden_size."""
    mlp: Literal["gelu", "geglu", "swiglu"] = "gelu"
    """gelu: two matrices, as in 2021; geglu: GLM-130B's gate (first half times GELU of the second);
    swiglu: ChatGLM2's and GLM-4's (SiLU of the first half times the second). Gates add a matrix."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """layernorm: mean and variance, weight and bias; rmsnorm: the root mean square and a weight."""
    residual: Literal["pre_norm", "deepnorm"] = "pre_norm"
    """pre_norm: branches are added to the stream; deepnorm: to sqrt(2 num_layers) times the
    normalised stream, as in GLM-130B and ChatGLM-6B."""
    sandwich_norm: bool = False
    """Normalise what attention and MLP give before it is added, as GLM-4-0414 does."""
    query_key_norm: bool = False
    """RMSNorm on each head's queries and keys before rotation, which bounds attention scores."""
    bias: Literal["all", "qkv", "none"] = "all"
    """Which linear maps have a bias: all of 2021, only queries, keys and values of GLM-4, none."""
    tied_embeddings: bool = True
    """Whether the word embeddings are also the output head; else it has a table of its own."""
    head: HeadSettings = HeadSettings()
    causal: bool = False
    """Whether Part A is read causally too, as ChatGLM2 and later do; else it sees all of itself."""
    vocab_size: int = Field(4096, ge=1)
    """Token ids the model knows; a run sets it to that of its tokenizer."""
    pad_vocab_multiple: int = Field(128, ge=1)
    """Embedding rows are rounded up to a multiple of this, which matrix units like; the rows past
    vocab_size never get any probability."""
    positions: Literal["learned", "rotary_2d", "rotary_1d", "rotary_half"] = "rotary_2d"
    """learned: a table for each of both positions, as in 2021; rotary_2d: half of each head turned
    by the position, half by the block position, as in ChatGLM-6B, which learns to look around a
    blank in a fraction of the steps; rotary_1d: whole heads turned by the sum of both, as in
    GLM-130B; rotary_half: pairs of neighbours in the first half of each head, as in GLM-4."""
    rotary_base: float = Field(10_000.0, gt=1)
    """rotary positions: longest wave length in tokens, over 2 pi."""
    rotary_scaling: float = Field(1.0, ge=1)
    """rotary positions: positions are divided by this, to read longer rows than were trained."""
    max_position_embeddings: int = Field(512, ge=1)
    """Longest row in tokens; learned position tables have one row more."""
    embedding_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability of the summed embeddings."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability of attention weights; above 0 it rules flex attention out in training."""
    hidden_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability of the attention and MLP outputs, before each residual sum."""
    layernorm_epsilon: float = Field(1e-5, gt=0)
    """Added to the variance, or the mean square, in every norm."""
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
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each target that is spread evenly over the vocabulary; losses are reported without
    it."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of the squared log of the softmax's denominator in what is minimised, 1e-4 in PaLM,
    against drifting logits; losses are reported without it."""
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
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                f"the heads share it evenly, so change one of them or give head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.kv_heads}; "
                f"each is shared by as many query heads, so change one of them"
            )
        divisor = _ROTARY_DIVISORS.get(self.positions, 1)
        if self.head_size % divisor:
            raise ValueError(
                f"positions: {self.positions} turns pairs of elements, and heads of "
                f"{self.head_size} are not a multiple of {divisor}; change hidden_size, num_heads "
                f"or head_dim"
            )
        if self.residual == "deepnorm" and self.sandwich_norm:
            raise ValueError(
                "residual: deepnorm bounds its branches by a factor, and sandwich_norm would undo "
                "it; set one of them"
            )
        if self.causal and self.head.pooling == "first":
            raise ValueError(
                "head.pooling: first takes a token that sees nothing but itself, because the model "
                "is causal; set it to auto or last"
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
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Key heads of a layer, and as many value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def pools_first(self) -> bool:
        """Whether a sequence's label is scored from its first token, else from its last."""
        pooling = self.head.pooling
        return not self.causal if pooling == "auto" else pooling == "first"

    @property
    def is_gated(self) -> bool:
        """Whether the MLP's first matrix makes a gate beside its values."""
        return self.mlp != "gelu"

    @property
    def qkv_size(self) -> int:
        """Queries, keys and values of a token, all heads together."""
        return (self.num_heads + 2 * self.kv_heads) * self.head_size

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the word embedding table."""
        return -(-self.vocab_size // self.pad_vocab_multiple) * self.pad_vocab_multiple

    @property
    def num_parameters(self) -> int:
        """Weights of the model, padded rows included; a tied head is counted once."""
        is_single = self.tied_embeddings or self.head.is_classifier
        tables = self.padded_vocab_size * (1 if is_single else 2)
        if self.positions == "learned":
            tables += 2 * (self.max_position_embeddings + 1)
        norm = self.hidden_size * (2 if self.norm == "layernorm" else 1)
        layers = self.num_layers * self._layer_parameters(norm)
        return layers + tables * self.hidden_size + norm + self._head_parameters()

    def _head_parameters(self) -> int:
        """Of a classification: a row for each label, and where tokens are labelled a bias."""
        has_bias = self.head.kind == "token_classification"
        return len(self.head.labels) * (self.hidden_size + has_bias)

    def _layer_parameters(self, norm: int) -> int:
        hidden, ffn, mixed = self.hidden_size, self.ffn_hidden_size, self.num_heads * self.head_size
        inner = 2 * ffn if self.is_gated else ffn
        matrices = hidden * (self.qkv_size + mixed + inner + ffn)
        biases = {"all": self.qkv_size + hidden + inner + hidden, "qkv": self.qkv_size, "none": 0}
        norms = norm * (4 if self.sandwich_norm else 2)
        head_norms = 2 * self.head_size if self.query_key_norm else 0
        return matrices + biases[self.bias] + norms + head_norms

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
