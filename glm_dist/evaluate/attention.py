"""Self-attention of one sample, kept as it is computed: queries, keys, values, who looks at whom.

For whoever explains a decision by it, and whoever wants to see what it is.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from glm_dist.model import GLM
from glm_dist.model.attention import Attend
from glm_dist.objective import Sample, dense_mask


class Attended(NamedTuple):
    """What one layer computed, rotated where the model rotates; each head's by itself."""

    query: Tensor
    """[heads, S, D]."""
    key: Tensor
    """[key heads, S, D]."""
    value: Tensor
    """[key heads, S, D]."""
    shares: Tensor
    """Of each query how much goes to each key, [heads, S, S]; each row sums to 1."""
    output: Tensor
    """Values mixed by these shares, [heads, S, D]."""


@torch.no_grad()
def attended(model: GLM, sample: Sample) -> list[Attended]:
    """What each layer of a model computes of a sample."""
    layers: list[Attended] = []
    words = embedded(model, torch.from_numpy(sample.tokens))[None]
    attend = _keeping(seen(model, sample), layers)
    hidden_states(model, sample, words, attend)
    return layers


def embedded(model: GLM, tokens: Tensor) -> Tensor:
    """Word embeddings of token ids, [..., hidden size]."""
    return model.word_embeddings(lambda table, ids: F.embedding(ids, table), tokens)


def hidden_states(model: GLM, sample: Sample, words: Tensor, attend: Attend) -> Tensor:
    """Final hidden states of word embeddings [versions, S, hidden size] in a sample's places."""
    positions, blocks = (
        torch.from_numpy(ids)[None].expand(len(words), -1)
        for ids in (sample.position_ids, sample.block_position_ids)
    )
    return model.transformer(words, positions, blocks, attend)


def seen(model: GLM, sample: Sample) -> Tensor:
    """Who sees whom, bool [1, 1, S, S]."""
    length = len(sample.tokens)
    end = 0 if model.settings.causal else sample.part_a_length
    rows = np.ones((1, length), dtype=np.int64)
    return torch.from_numpy(dense_mask(rows, np.full((1, length), end)))[:, None]


def _keeping(mask: Tensor, layers: list[Attended]) -> Attend:
    """Attention written out, which keeps all it computes of the first text."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        times = query.shape[1] // key.shape[1]
        keys, values = (states.repeat_interleave(times, dim=1) for states in (key, value))
        scores = query @ keys.transpose(2, 3) / query.shape[-1] ** 0.5
        shares = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
        output = shares @ values
        layers.append(Attended(query[0], key[0], value[0], shares[0], output[0]))
        return output

    return attend
