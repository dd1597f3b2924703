"""A GLM that sees its prompt in both directions, for transformers' `trust_remote_code=True`.

This file is copied beside exported weights. It needs torch and transformers alone.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    CausalLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)


class GLMPrefixConfig(PretrainedConfig):
    """The shape of a model; what each field means is said where it is used."""

    model_type = "glm_prefix"

    def __init__(self, **fields: Any) -> None:
        defaults = {
            "num_layers": 2,
            "hidden_size": 64,
            "num_heads": 4,
            "num_kv_heads": 4,
            "head_dim": 16,
            "ffn_hidden_size": 256,
            "vocab_size": 128,
            "max_position_embeddings": 512,
            "mlp": "gelu",
            "norm": "layernorm",
            "residual": "pre_norm",
            "sandwich_norm": False,
            "query_key_norm": False,
            "bias": "all",
            "tied_embeddings": True,
            "positions": "learned",
            "rotary_base": 10_000.0,
            "rotary_scaling": 1.0,
            "layernorm_epsilon": 1e-5,
            "causal": False,
            "pooling": "first",
            "classifier_dropout": 0.0,
        }
        for name, value in defaults.items():
            setattr(self, name, fields.pop(name, value))
        super().__init__(**{**fields, "tie_word_embeddings": False})  # the head is the same tensor


class GLMPrefixBody(PreTrainedModel):
    """Hidden states of tokens, of which the first `prefix_lengths` of each row see one another."""

    config_class = GLMPrefixConfig
    _no_split_modules = ["Layer"]  # noqa: RUF012

    def __init__(self, config: GLMPrefixConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.transformer = Transformer(config)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of words."""
        return self.word_embeddings

    def hidden_states(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        prefix_lengths: Tensor | None,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """Final hidden states [B, S, hidden]; see `GLMPrefixModel.forward`."""
        batch, length = input_ids.shape
        if position_ids is None:
            places = torch.arange(length, device=input_ids.device).expand(batch, length)
            position_ids = torch.stack((places, torch.zeros_like(places)), dim=1)
        mask = self._mask(input_ids, prefix_lengths, attention_mask)
        return self.transformer(self.word_embeddings(input_ids), position_ids, mask)

    def _mask(
        self, input_ids: Tensor, prefix_lengths: Tensor | None, attention_mask: Tensor | None
    ) -> Tensor:
        if attention_mask is not None and attention_mask.dim() == 4:
            return attention_mask.bool()
        batch, length = input_ids.shape
        index = torch.arange(length, device=input_ids.device)
        seen = (index[None, :] <= index[:, None]).expand(batch, 1, length, length)
        if prefix_lengths is not None and not self.config.causal:
            seen = seen | (index < prefix_lengths[:, None])[:, None, None, :]
        if attention_mask is not None:
            own = torch.eye(length, dtype=torch.bool, device=input_ids.device)
            seen = (seen & attention_mask.bool()[:, None, None, :]) | own
        return seen


class GLMPrefixModel(GLMPrefixBody):
    """Logits of words."""

    def __init__(self, config: GLMPrefixConfig) -> None:
        super().__init__(config)
        if not config.tied_embeddings:
            self.output_layer = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        prefix_lengths: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        """Logits [B, S, vocabulary], and the mean loss where `labels` are given.

        Args:
            input_ids: [B, S].
            position_ids: [B, 2, S], the place in the text and the place inside a blank's answer;
                by default 0, 1, 2, … and zeros, which is right for a text without blanks.
            prefix_lengths: [B], how many tokens of each row are prompt; by default none.
            attention_mask: [B, S], 0 for padding; or [B, 1, S, S], true where a key is seen.
            labels: [B, S] ids to predict in each place, not shifted; -100 bears no loss.
        """
        hidden = self.hidden_states(input_ids, position_ids, prefix_lengths, attention_mask)
        is_tied = self.config.tied_embeddings
        weight = self.word_embeddings.weight if is_tied else self.output_layer.weight
        logits = F.linear(hidden, weight).float()
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten().long())
        return CausalLMOutput(loss=loss, logits=logits)


class GLMPrefixClassifier(GLMPrefixBody):
    """Scores of labels; a text is prompt as a whole, unless the model is causal."""

    def __init__(self, config: GLMPrefixConfig, has_bias: bool) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, len(config.id2label or {}), bias=has_bias)
        self.post_init()

    def scores(
        self, input_ids: Tensor, position_ids: Tensor | None, attention_mask: Tensor | None
    ) -> Tensor:
        """Of each token, [B, S, labels]."""
        rows, length = input_ids.shape
        everything = torch.full((rows,), length, device=input_ids.device)
        hidden = self.hidden_states(input_ids, position_ids, everything, attention_mask)
        return self.score(self.dropout(hidden)).float()

    def loss(self, scores: Tensor, labels: Tensor | None) -> Tensor | None:
        """Mean over what is labelled: ids, or 0 and 1 for each label where several can be."""
        if labels is None:
            return None
        if self.config.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(scores, labels.float())
        return F.cross_entropy(scores.flatten(0, -2), labels.flatten().long())


class GLMPrefixForSequenceClassification(GLMPrefixClassifier):
    """One label, or several, for each text."""

    def __init__(self, config: GLMPrefixConfig) -> None:
        super().__init__(config, has_bias=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Scores [B, labels] of the first or the last token of each text, as the config says.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 0 for padding.
            position_ids: [B, 2, S]; by default 0, 1, 2, … and zeros.
            labels: [B], or [B, labels] of 0 and 1.
        """
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        place = seen.argmax(1)
        if self.config.pooling == "last":
            place = seen.shape[1] - 1 - seen.flip(1).argmax(1)
        scores = self.scores(input_ids, position_ids, attention_mask)
        pooled = scores[torch.arange(len(scores), device=scores.device), place]
        return SequenceClassifierOutput(loss=self.loss(pooled, labels), logits=pooled)


class GLMPrefixForTokenClassification(GLMPrefixClassifier):
    """One label, or several, for each token."""

    def __init__(self, config: GLMPrefixConfig) -> None:
        super().__init__(config, has_bias=True)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> TokenClassifierOutput:
        """Scores [B, S, labels]; arguments as for sequences, `labels` [B, S], -100 for none."""
        scores = self.scores(input_ids, position_ids, attention_mask)
        return TokenClassifierOutput(loss=self.loss(scores, labels), logits=scores)


class Transformer(nn.Module):
    """Position tables where positions are learned, layers, and the last norm."""

    def __init__(self, config: GLMPrefixConfig) -> None:
        super().__init__()
        self.config = config
        if config.positions == "learned":
            rows = config.max_position_embeddings + 1
            self.position_embeddings = nn.Embedding(rows, config.hidden_size)
            self.block_position_embeddings = nn.Embedding(rows, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.final_layernorm = build_norm(config)

    def forward(self, hidden: Tensor, position_ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states after all layers."""
        places, blocks = position_ids.unbind(dim=1)
        turns = None
        if self.config.positions == "learned":
            hidden = hidden + self.position_embeddings(places)
            hidden = hidden + self.block_position_embeddings(blocks)
        else:
            turns = rotation(self.config, places, blocks, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, turns, mask)
        return self.final_layernorm(hidden)


class Layer(nn.Module):
    """Attention and MLP, each added to the stream."""

    def __init__(self, config: GLMPrefixConfig) -> None:
        super().__init__()
        self.config = config
        self.input_layernorm = build_norm(config)
        self.attention = Attention(config)
        self.post_attention_layernorm = build_norm(config)
        self.mlp = MLP(config)
        if config.sandwich_norm:
            self.attention_output_layernorm = build_norm(config)
            self.mlp_output_layernorm = build_norm(config)

    def forward(self, hidden: Tensor, turns: tuple[Tensor, Tensor] | None, mask: Tensor) -> Tensor:
        """Hidden states after this layer."""
        normed = self.input_layernorm(hidden)
        mixed = self.attention(normed, turns, mask)
        if self.config.sandwich_norm:
            mixed = self.attention_output_layernorm(mixed)
        hidden = self._stream(hidden, normed) + mixed
        normed = self.post_attention_layernorm(hidden)
        mixed = self.mlp(normed)
        if self.config.sandwich_norm:
            mixed = self.mlp_output_layernorm(mixed)
        return self._stream(hidden, normed) + mixed

    def _stream(self, hidden: Tensor, normed: Tensor) -> Tensor:
        """What a branch is added to: DeepNorm scales the normalised tensor."""
        if self.config.residual == "pre_norm":
            return hidden
        return normed * math.sqrt(2 * self.config.num_layers)


class Attention(nn.Module):
    """All heads in one fused map, grouped where there are fewer key than query heads."""

    def __init__(self, config: GLMPrefixConfig) -> None:
        super().__init__()
        self.config = config
        size = config.head_dim
        self.heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self.query_key_value = nn.Linear(
            config.hidden_size, sum(self.heads) * size, bias=config.bias != "none"
        )
        self.dense = nn.Linear(
            config.num_heads * size, config.hidden_size, bias=config.bias == "all"
        )
        if config.query_key_norm:
            self.query_layernorm = nn.RMSNorm(size, eps=config.layernorm_epsilon)
            self.key_layernorm = nn.RMSNorm(size, eps=config.layernorm_epsilon)

    def forward(self, hidden: Tensor, turns: tuple[Tensor, Tensor] | None, mask: Tensor) -> Tensor:
        """Mixed values of all tokens."""
        fused = self.query_key_value(hidden).unflatten(-1, (-1, self.config.head_dim))
        query, key, value = fused.transpose(1, 2).split(self.heads, dim=1)
        if self.config.query_key_norm:
            query, key = self.query_layernorm(query), self.key_layernorm(key)
        if turns is not None:
            query, key = (turn(self.config.positions, x, *turns) for x in (query, key))
        times = self.heads[0] // self.heads[1]
        key, value = (x.repeat_interleave(times, dim=1) for x in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, mask)
        return self.dense(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two matrices; a gate's half is rows of the first one."""

    def __init__(self, config: GLMPrefixConfig) -> None:
        super().__init__()
        self.kind = config.mlp
        inner = config.ffn_hidden_size * (1 if config.mlp == "gelu" else 2)
        has_bias = config.bias == "all"
        self.dense_h_to_4h = nn.Linear(config.hidden_size, inner, bias=has_bias)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=has_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Transformed states."""
        inner = self.dense_h_to_4h(hidden)
        if self.kind == "gelu":
            inner = F.gelu(inner, approximate="tanh")
        else:
            first, second = inner.chunk(2, dim=-1)
            inner = F.silu(first) * second if self.kind == "swiglu" else first * F.gelu(second)
        return self.dense_4h_to_h(inner)


def build_norm(config: GLMPrefixConfig) -> nn.Module:
    """A norm over the hidden size."""
    kind = nn.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(config.hidden_size, eps=config.layernorm_epsilon)


def rotation(
    config: GLMPrefixConfig, places: Tensor, blocks: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, S, …] of each pair of elements."""
    places, blocks = places / config.rotary_scaling, blocks / config.rotary_scaling
    size = config.head_dim if config.positions == "rotary_1d" else config.head_dim // 2
    steps = torch.arange(0, size, 2, dtype=torch.float32, device=places.device) / size
    waves = config.rotary_base**-steps
    if config.positions == "rotary_2d":
        angles = torch.stack((places, blocks), dim=-1)[..., None] * waves
    else:
        angles = (places + blocks)[..., None] * waves
    return angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]


def turn(kind: str, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys [B, H, S, D], turned."""

    def both(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return first * cos - second * sin, second * cos + first * sin

    if kind == "rotary_2d":  # a half of the head for each position, turned as two halves of its own
        first, second = states.unflatten(-1, (2, 2, -1)).unbind(-2)
        return torch.stack(both(first, second), dim=-2).flatten(-3)
    if kind == "rotary_1d":
        return torch.cat(both(*states.chunk(2, dim=-1)), dim=-1)
    turning, resting = states.chunk(2, dim=-1)
    first, second = turning.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.cat((torch.stack(both(first, second), dim=-1).flatten(-2), resting), dim=-1)
