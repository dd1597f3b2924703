"""The norms of a layer, by the settings.

They stand apart because layers, sandwich and final norm all take the same one.
"""

from torch import nn

from glm_dist.model.settings import ModelSettings


def build_norm(settings: ModelSettings) -> nn.Module:
    """A norm over the hidden size."""
    if settings.norm == "rmsnorm":
        return nn.RMSNorm(settings.hidden_size, eps=settings.layernorm_epsilon)
    return nn.LayerNorm(settings.hidden_size, eps=settings.layernorm_epsilon)
