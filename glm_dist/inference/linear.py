"""Linear maps whose every row meets one kernel shape, whatever else is in the batch.

They stand apart as a substitution in a copy of the model: the layers of training are those of
decoding, and only `nn.Linear` is another. A matrix product of another number of rows may sum in
another order, so products run in tiles of a fixed number of rows, and a row's result does not
depend on its neighbours. On the CPU the weights are laid out once as oneDNN's kernels want them.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glm_dist.model import GLM

Multiply = Callable[[Tensor], Tensor]


class RowTiledLinear(nn.Module):
    """`weight @ x + bias` in tiles of `decode_rows` or `prefill_rows` rows."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, decode_rows: int, prefill_rows: int
    ) -> None:
        super().__init__()
        self.out_features = weight.shape[0]
        self._multiply = _build_multiply(weight, bias, prefill_rows)
        self._decode_rows, self._prefill_rows = decode_rows, prefill_rows

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [..., out] of inputs [..., in]; the number of rows is one tile or several."""
        flat = inputs.flatten(0, -2)
        if len(flat) == self._decode_rows:
            outputs = self._multiply(flat)
        else:
            outputs = flat.new_empty(len(flat), self.out_features)
            for start in range(0, len(flat), self._prefill_rows):
                tile = slice(start, start + self._prefill_rows)
                outputs[tile] = self._multiply(flat[tile])
        return outputs.view(*inputs.shape[:-1], self.out_features)


def _build_multiply(weight: Tensor, bias: Tensor | None, rows: int) -> Multiply:
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if not _can_pack(weight):
        return lambda tile: F.linear(tile, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda tile: multiply(tile, packed, bias, "none", [], "")


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    bf16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or bf16


def tiled_copy(model: GLM, *, decode_rows: int, prefill_rows: int) -> tuple[GLM, RowTiledLinear]:
    """The model with tiled maps, and its head; other parameters are shared with `model`."""
    tiles = {"decode_rows": decode_rows, "prefill_rows": prefill_rows}
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    tiled = copy.deepcopy(model, memo=shared).eval()
    for module in list(tiled.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, RowTiledLinear(child.weight, child.bias, **tiles))
    return tiled, RowTiledLinear(tiled.head.weight, None, **tiles)
