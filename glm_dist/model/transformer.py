"""The transformer of GLM, from 2021 to GLM-4: embeddings, layers, a head, and the loss.

What differs between the published families is an option of `ModelSettings`. Parameter names are
those of the reference implementation (GLM_SPEC 2.5), so its checkpoints load as they are. The loss
is computed inside, because engines that shard parameters gather them only while the module that
owns them runs.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from glm_dist.model.attention import Attend, build_attend, dense_attend
from glm_dist.model.batch import LossOutput
from glm_dist.model.cache import Past
from glm_dist.model.labels import LabelScores, label_loss
from glm_dist.model.loss import LossOptions, loss_rows, tied_cross_entropy, tied_logits
from glm_dist.model.mlp import MLP
from glm_dist.model.norm import build_norm
from glm_dist.model.positions import build_rotary
from glm_dist.model.prefix import PrefixEncoder, prefixed
from glm_dist.model.settings import ModelSettings

T = TypeVar("T")


class GLM(nn.Module):
    """A General Language Model; called, it returns the loss of a batch."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.word_embeddings = WordEmbeddings(settings)
        self.transformer = Transformer(settings)
        self.prefix_encoder: PrefixEncoder | None = None
        if settings.head.is_classifier:
            self.score = LabelScores(settings)
        elif not settings.tied_embeddings:
            self.output_layer = WordEmbeddings(settings)

    @property
    def _loss_options(self) -> LossOptions:
        return LossOptions(
            vocab_size=self.settings.vocab_size,
            chunk_tokens=self.settings.loss_chunk_tokens,
            label_smoothing=self.settings.label_smoothing,
            z_loss=self.settings.z_loss,
        )

    @property
    def head(self) -> "WordEmbeddings":
        """The owner of the table that makes logits of hidden states."""
        return self.word_embeddings if self.settings.tied_embeddings else self.output_layer

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        position_ids: Tensor,
        block_position_ids: Tensor,
        segment_ids: Tensor,
        prefix_ends: Tensor,
        loss_mask: Tensor,
    ) -> LossOutput:
        """Loss of packed rows; the arguments are the fields of `Batch`, each [B, S].

        For a classification `targets` holds the ids of labels, [B, S], or each label's share of the
        token, [B, S, labels]: 0 or 1 where it can have several. `loss_mask` is 1 at tokens that
        are labelled, which of a sequence is the one that is pooled.
        """
        settings = self.settings
        if settings.causal:
            prefix_ends = torch.zeros_like(prefix_ends)
        attend = build_attend(
            settings, segment_ids, prefix_ends, self.training, self.num_prefix_tokens
        )
        rows = loss_rows(loss_mask)
        hidden = self.transformer(
            self._embed(tokens),
            position_ids,
            block_position_ids,
            attend,
            rows=rows,
            prefix=self.prefix_states(),
        )
        if settings.head.is_classifier:
            is_exclusive = not settings.head.multi_label
            return label_loss(
                self.score(hidden), targets, loss_mask, rows, is_exclusive=is_exclusive
            )
        use = partial(tied_cross_entropy, options=self._loss_options)
        return self.head(use, hidden, targets, loss_mask, rows)

    def hidden_states(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        block_position_ids: Tensor,
        mask: Tensor | None,
        cache: Past | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, S, hidden size], for decoding and heads.

        Args:
            tokens: ids [B, S] of the tokens to compute.
            position_ids: their places, [B, S].
            block_position_ids: their places inside spans, [B, S].
            mask: bool that broadcasts to [B, 1, S, past + S], or None where all keys are visible.
            cache: past tokens, which the new ones join; their keys come first.
            rows: flat indices of tokens; with them, [len(rows), hidden size] of these alone.
        """
        words = self._embed(tokens)
        if mask is not None:
            mask = F.pad(mask, (0, self.num_prefix_tokens), value=True)
        attend = dense_attend(mask)
        hidden = self.transformer(
            words, position_ids, block_position_ids, attend, cache, rows, self.prefix_states()
        )
        if cache is not None:
            cache.advance(tokens.shape[1])
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits of hidden states.

        Of words [..., padded V], where padded columns are -inf; of a classification [..., labels].
        """
        if self.settings.head.is_classifier:
            scores = self.score(hidden)
            return scores.to(torch.promote_types(scores.dtype, torch.float32))
        return self.head(partial(tied_logits, vocab_size=self.settings.vocab_size), hidden)

    @property
    def num_prefix_tokens(self) -> int:
        """Trained keys that every layer has beside those of the tokens."""
        return 0 if self.prefix_encoder is None else self.prefix_encoder.num_tokens

    def prefix_states(self) -> Tensor | None:
        """Keys and values [L, 2, key heads, P, D] that every token sees beside the tokens'."""
        return None if self.prefix_encoder is None else self.prefix_encoder()

    def _embed(self, tokens: Tensor) -> Tensor:
        words = self.word_embeddings(_look_up, tokens)
        share = self.settings.embedding_gradient_shrink
        if share == 1.0:
            return words
        # The bracket is exactly zero, so values stay as they are while the gradient is scaled.
        return words + (share - 1.0) * (words - words.detach())


def _look_up(weight: Tensor, tokens: Tensor) -> Tensor:
    return F.embedding(tokens, weight)


class WordEmbeddings(nn.Module):
    """A table [padded V, hidden size]: the input embedding, the output head, or both.

    Every use goes through the forward of this one owner: ZeRO-3 gathers the table there, and there
    is no second reference to it that moving the model or saving it could break.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(settings.padded_vocab_size, settings.hidden_size))

    def forward(self, use: Callable[..., T], *inputs: Tensor | None) -> T:
        """`use(table, *inputs)`."""
        return use(self.weight, *inputs)


class Transformer(nn.Module):
    """Gives word embeddings or attention both positions and runs the layers."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self._settings, hidden = settings, settings.hidden_size
        if settings.positions == "learned":
            rows = settings.max_position_embeddings + 1
            self.position_embeddings = nn.Embedding(rows, hidden)
            self.block_position_embeddings = nn.Embedding(rows, hidden)
        self.embedding_dropout = nn.Dropout(settings.embedding_dropout)
        self.layers = nn.ModuleList(TransformerLayer(settings) for _ in range(settings.num_layers))
        self.final_layernorm = build_norm(settings)
        self._recompute = settings.activation_checkpointing == "full"

    def forward(
        self,
        words: Tensor,
        position_ids: Tensor,
        block_position_ids: Tensor,
        attend: Attend,
        cache: Past | None = None,
        rows: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, S, hidden size] of word embeddings of that shape.

        With `prefix`, [L, 2, key heads, P, D], each layer has these keys and values too, behind
        those of the tokens; `attend` counts on them. With `rows`, flat indices of tokens, only
        theirs, [len(rows), hidden size]: the last layer then does its work past the attention for
        no other token.
        """
        hidden = words
        rotate: Callable[[Attend], Attend] = _leave
        if self._settings.positions == "learned":
            hidden = hidden + self.position_embeddings(position_ids)
            hidden = hidden + self.block_position_embeddings(block_position_ids)
        else:
            rotate = build_rotary(self._settings, position_ids, block_position_ids, hidden.dtype)
        hidden = self.embedding_dropout(hidden)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            layer_attend = attend if prefix is None else prefixed(attend, prefix[index])
            if cache is not None:
                layer_attend = cache.attend(index, layer_attend)
            inputs = (hidden, rotate(layer_attend), rows if index == last else None)
            if self._recompute and torch.is_grad_enabled():
                hidden = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                hidden = layer(*inputs)
        return self.final_layernorm(hidden)


def _leave(attend: Attend) -> Attend:
    return attend


class TransformerLayer(nn.Module):
    """Attention and MLP, each normalised before and added to the residual stream."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.input_layernorm = build_norm(settings)
        self.attention = Attention(settings)
        self.post_attention_layernorm = build_norm(settings)
        self.mlp = MLP(settings)
        self._has_sandwich = settings.sandwich_norm
        if settings.sandwich_norm:
            self.attention_output_layernorm = build_norm(settings)
            self.mlp_output_layernorm = build_norm(settings)
        self.dropout = nn.Dropout(settings.hidden_dropout)
        is_deep = settings.residual == "deepnorm"
        self._stream_factor = math.sqrt(2 * settings.num_layers) if is_deep else None

    def forward(self, hidden: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """Hidden states [B, S, hidden size] after this layer, or those of `rows` alone."""
        normed = self.input_layernorm(hidden)
        mixed = self.attention(normed, attend, rows)
        if self._has_sandwich:
            mixed = self.attention_output_layernorm(mixed)
        hidden = self._stream(_choose(hidden, rows), _choose(normed, rows)) + self.dropout(mixed)
        normed = self.post_attention_layernorm(hidden)
        mixed = self.mlp(normed)
        if self._has_sandwich:
            mixed = self.mlp_output_layernorm(mixed)
        return self._stream(hidden, normed) + self.dropout(mixed)

    def _stream(self, hidden: Tensor, normed: Tensor) -> Tensor:
        """What a branch is added to; GLM-130B scales the normalised tensor, not its input."""
        return hidden if self._stream_factor is None else normed * self._stream_factor


def _choose(hidden: Tensor, rows: Tensor | None) -> Tensor:
    return hidden if rows is None else hidden.flatten(0, 1).index_select(0, rows)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection, rows in blocks [q | k | v]."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        heads, kv_heads = settings.num_heads, settings.kv_heads
        self._splits, self._head_size = (heads, kv_heads, kv_heads), settings.head_size
        self.query_key_value = nn.Linear(
            settings.hidden_size, settings.qkv_size, bias=settings.bias != "none"
        )
        self.dense = nn.Linear(
            heads * settings.head_size, settings.hidden_size, bias=settings.bias == "all"
        )
        self._has_norms = settings.query_key_norm
        if settings.query_key_norm:
            epsilon = settings.layernorm_epsilon
            self.query_layernorm = nn.RMSNorm(settings.head_size, eps=epsilon)
            self.key_layernorm = nn.RMSNorm(settings.head_size, eps=epsilon)
        self.mix: Callable[..., Tensor] = _mix

    def forward(self, hidden: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """Mixed values [B, S, hidden size], or those of `rows` alone."""
        fused = self.query_key_value(hidden).unflatten(-1, (-1, self._head_size)).transpose(1, 2)
        query, key, value = fused.split(self._splits, dim=1)
        if self._has_norms:
            query, key = self.query_layernorm(query), self.key_layernorm(key)
        mixed = self.mix(attend, query, key, value)
        return self.dense(_choose(mixed.transpose(1, 2).flatten(2), rows))


def _mix(attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend(query, key, value)


def compile_layers(model: nn.Module) -> None:
    """Let torch.compile fuse what lies between the matrix products of each layer.

    Attention stays outside: what it does changes with the rows.
    """
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            module.compile()
        elif isinstance(module, Attention):
            module.mix = torch.compiler.disable(_mix)
