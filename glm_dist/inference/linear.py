"""Linear maps whose every row rounds alike, whatever else is in the batch.

They stand apart as a substitution in a copy of the model: the layers of training are those of
decoding, and only `nn.Linear` is another. A matrix product of another number of rows may sum in
another order, so products run in tiles of the sizes that were found to sum alike, and a row's
result does not depend on its neighbours.
"""

import copy

import torch
from torch import Tensor, nn

from glm_dist.inference.adapters import Adapters, LowRank
from glm_dist.inference.products import Multiply, build_product
from glm_dist.inference.tiles import RowTiles
from glm_dist.model import GLM
from glm_dist.model.labels import LabelScores


class RowTiledLinear(nn.Module):
    """`weight @ x + bias`, a tile of rows at a time, and what an adapter adds to it."""

    def __init__(
        self, out_features: int, multiply: Multiply, tiles: RowTiles, beside: LowRank | None = None
    ) -> None:
        """Args: columns of its outputs; the product of a tile; their sizes; adapters."""
        super().__init__()
        self.out_features = out_features
        self._multiply, self._tiles, self._beside = multiply, tiles, beside

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [..., out] of inputs [..., in]; the number of rows is a sum of tiles."""
        flat = inputs.flatten(0, -2)
        if not len(flat):
            return inputs.new_empty(*inputs.shape[:-1], self.out_features)
        outputs = self._tiles.run(self._multiply, flat)
        if self._beside is not None:
            outputs = self._beside.add(flat, outputs)
        return outputs.view(*inputs.shape[:-1], self.out_features)


def tiled_copy(
    model: GLM, tiles: RowTiles, adapters: Adapters, dtype: torch.dtype, is_int8: bool = False
) -> tuple[GLM, RowTiledLinear]:
    """The model in `dtype` with tiled maps, and its head, be it of words or of labels.

    Parameters that have the type already are shared with `model`. In int8 the maps of the layers
    are so, and what chooses the tokens or labels stays in `dtype`.
    """
    shared = {id(tensor): _as_type(tensor, dtype) for tensor in _tensors(model)}
    tiled = copy.deepcopy(model, memo=shared).eval()
    for path, module in list(tiled.named_modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                is_small = is_int8 and not isinstance(child, LabelScores)
                product = build_product(child.weight, child.bias, is_small)
                beside = adapters.beside(f"{path}.{name}", child.weight, child.bias, tiles)
                setattr(module, name, RowTiledLinear(child.out_features, product, tiles, beside))
    if model.settings.head.is_classifier:
        labels = tiled.get_submodule("score")
        assert isinstance(labels, RowTiledLinear)
        return tiled, labels
    table = tiled.head.weight
    return tiled, RowTiledLinear(len(table), build_product(table, None, is_int8=False), tiles)


def _tensors(model: GLM) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _as_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype == dtype or not tensor.is_floating_point():
        return tensor
    return nn.Parameter(tensor.detach().to(dtype), requires_grad=False)
