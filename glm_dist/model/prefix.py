"""Keys and values that are trained in place of the model: P-tuning v2.

They stand apart because the model computes the same without them. The layout is that of peft's
prefix tuning: for each token the layers, in each the keys and then the values of all heads.
"""

import torch
from torch import Tensor, nn

from glm_dist.model.attention import Attend
from glm_dist.model.settings import ModelSettings


class PrefixEncoder(nn.Module):
    """Called, it gives each layer's keys and values, [L, 2, key heads, P, D] for P prefix tokens.

    No position is laid on them, and every token sees them all. As in the authors' code the table
    is drawn with standard deviation 1.
    """

    def __init__(self, settings: ModelSettings, num_tokens: int, projection: bool = False) -> None:
        super().__init__()
        self._shape = (settings.num_layers, 2, settings.kv_heads, settings.head_size)
        width = settings.num_layers * 2 * settings.kv_heads * settings.head_size
        hidden = settings.hidden_size
        self.num_tokens = num_tokens
        self.embedding = nn.Embedding(num_tokens, hidden if projection else width)
        self.transform = nn.Sequential()
        if projection:
            self.transform.extend([nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, width)])

    def forward(self) -> Tensor:
        """Keys and values of all layers."""
        return self.flat().unflatten(1, self._shape).permute(1, 2, 3, 0, 4)

    def flat(self) -> Tensor:
        """The same as [P, L * 2 * key heads * D], which is what others read."""
        places = torch.arange(self.num_tokens, device=self.embedding.weight.device)
        return self.transform(self.embedding(places))


def prefixed(attend: Attend, prefix: Tensor) -> Attend:
    """`attend` with a layer's prefix [2, key heads, P, D] behind the other keys."""

    def attend_with_prefix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = (
            torch.cat((own, more.to(own.dtype).expand(len(own), -1, -1, -1)), dim=2)
            for own, more in ((key, prefix[0]), (value, prefix[1]))
        )
        return attend(query, keys, values)

    return attend_with_prefix
