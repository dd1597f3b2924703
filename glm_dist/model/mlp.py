"""The MLP of a layer, plain or gated.

It stands apart as the one place where the families' activations are written down.
"""

from collections.abc import Callable
from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F

from glm_dist.model.settings import ModelSettings


class MLP(nn.Module):
    """Two matrices with an activation between them; a gate's half is rows of the first matrix."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        ffn, has_bias = settings.ffn_hidden_size, settings.bias == "all"
        inner = 2 * ffn if settings.is_gated else ffn
        self.dense_h_to_4h = nn.Linear(settings.hidden_size, inner, bias=has_bias)
        self.dense_4h_to_h = nn.Linear(ffn, settings.hidden_size, bias=has_bias)
        self._activate = _ACTIVATIONS[settings.mlp]

    def forward(self, hidden: Tensor) -> Tensor:
        """Transformed states of the same shape."""
        return self.dense_4h_to_h(self._activate(self.dense_h_to_4h(hidden)))


def _gelu(inner: Tensor) -> Tensor:
    """The tanh form, as the 2021 reference computes it."""
    return F.gelu(inner, approximate="tanh")


def _geglu(inner: Tensor) -> Tensor:
    """GLM-130B's order: the values come first, the gate second."""
    values, gate = inner.chunk(2, dim=-1)
    return values * F.gelu(gate)


def _swiglu(inner: Tensor) -> Tensor:
    """ChatGLM2's and GLM-4's order: the gate comes first."""
    gate, values = inner.chunk(2, dim=-1)
    return F.silu(gate) * values


_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "gelu": _gelu,
    "geglu": _geglu,
    "swiglu": _swiglu,
}
