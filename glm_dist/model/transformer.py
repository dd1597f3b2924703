"""The transformer of GLM: embeddings with two positions, pre-norm layers, a tied head, the loss.

Parameter names are those of the reference implementation (GLM_SPEC 2.5), so its checkpoints load as
they are. The loss is computed inside, because engines that shard parameters gather them only while
the module that owns them runs.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from glm_dist.model.attention import Attend, build_attend, dense_attend
from glm_dist.model.batch import LossOutput
from glm_dist.model.cache import KVCache
from glm_dist.model.loss import loss_rows, tied_cross_entropy, tied_logits
from glm_dist.model.positions import Rotary2D
from glm_dist.model.settings import ModelSettings

T = TypeVar("T")


class GLM(nn.Module):
    """A General Language Model; called, it returns the loss of a batch."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.word_embeddings = WordEmbeddings(settings)
        self.transformer = Transformer(settings)

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
        """Loss of packed rows; the arguments are the fields of `Batch`, each [B, S]."""
        settings = self.settings
        attend = build_attend(settings, segment_ids, prefix_ends, self.training)
        rows = loss_rows(loss_mask)
        hidden = self.transformer(
            self._embed(tokens), position_ids, block_position_ids, attend, rows=rows
        )
        head = partial(
            tied_cross_entropy,
            vocab_size=settings.vocab_size,
            chunk_tokens=settings.loss_chunk_tokens,
        )
        return self.word_embeddings(head, hidden, targets, loss_mask, rows)

    def hidden_states(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        block_position_ids: Tensor,
        mask: Tensor | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Final hidden states [B, S, hidden size], for decoding and heads.

        Args:
            tokens: ids [B, S] of the tokens to compute.
            position_ids: their places, [B, S].
            block_position_ids: their places inside spans, [B, S].
            mask: bool that broadcasts to [B, 1, S, past + S], or None where all keys are visible.
            cache: past tokens, which the new ones join; their keys come first.
        """
        words = self._embed(tokens)
        attend = dense_attend(mask)
        hidden = self.transformer(words, position_ids, block_position_ids, attend, cache)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits [..., padded V] of hidden states; padded columns are -inf."""
        return self.word_embeddings(
            partial(tied_logits, vocab_size=self.settings.vocab_size), hidden
        )

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
    """The table [padded V, hidden size] that is both the input embedding and the output head.

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
        self.final_layernorm = nn.LayerNorm(hidden, eps=settings.layernorm_epsilon)
        self._recompute = settings.activation_checkpointing == "full"

    def forward(
        self,
        words: Tensor,
        position_ids: Tensor,
        block_position_ids: Tensor,
        attend: Attend,
        cache: KVCache | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, S, hidden size] of word embeddings of that shape.

        With `rows`, flat indices of tokens, only theirs, [len(rows), hidden size]: the last layer
        then does its work past the attention for no other token.
        """
        hidden, rotate = words, _leave
        if self._settings.positions == "learned":
            hidden = hidden + self.position_embeddings(position_ids)
            hidden = hidden + self.block_position_embeddings(block_position_ids)
        else:
            rotate = Rotary2D(
                position_ids,
                block_position_ids,
                self._settings.head_size,
                self._settings.rotary_base,
                hidden.dtype,
            )
        hidden = self.embedding_dropout(hidden)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            layer_attend = attend if cache is None else cache.attend(index, attend)
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
        size, epsilon = settings.hidden_size, settings.layernorm_epsilon
        self.input_layernorm = nn.LayerNorm(size, eps=epsilon)
        self.attention = Attention(settings)
        self.post_attention_layernorm = nn.LayerNorm(size, eps=epsilon)
        self.mlp = MLP(settings)
        self.dropout = nn.Dropout(settings.hidden_dropout)

    def forward(self, hidden: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """Hidden states [B, S, hidden size] after this layer, or those of `rows` alone."""
        mixed = self.attention(self.input_layernorm(hidden), attend, rows)
        hidden = _choose(hidden, rows) + self.dropout(mixed)
        return hidden + self.dropout(self.mlp(self.post_attention_layernorm(hidden)))


def _choose(hidden: Tensor, rows: Tensor | None) -> Tensor:
    return hidden if rows is None else hidden.flatten(0, 1).index_select(0, rows)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection, rows in blocks [q | k | v]."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.num_heads, self.head_size = settings.num_heads, settings.head_size
        self.query_key_value = nn.Linear(settings.hidden_size, 3 * settings.hidden_size)
        self.dense = nn.Linear(settings.hidden_size, settings.hidden_size)

    def forward(self, hidden: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """Mixed values [B, S, hidden size], or those of `rows` alone."""
        batch, length, size = hidden.shape
        fused = self.query_key_value(hidden).view(batch, length, 3, self.num_heads, self.head_size)
        query, key, value = fused.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(query, key, value)
        return self.dense(_choose(mixed.transpose(1, 2).reshape(batch, length, size), rows))


class MLP(nn.Module):
    """Two matrices with the tanh form of GELU between them."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(settings.hidden_size, settings.ffn_hidden_size)
        self.dense_4h_to_h = nn.Linear(settings.ffn_hidden_size, settings.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Transformed states of the same shape."""
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(hidden), approximate="tanh"))
