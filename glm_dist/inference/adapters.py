"""Low-rank adapters side by side in one batch, beside one model.

They stand apart from the maps they stand beside. The matrices of all adapters lie one under the
other, so a map has two small products for all of them together; a row keeps its own adapter's
part of the middle and zeros for the others. Shapes are those of the whole set, whichever adapters
are in a batch, so a row rounds as it does alone.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glm_dist.engine.adapters import AdapterFolder, hash_model
from glm_dist.errors import ModelError
from glm_dist.inference.products import Multiply, build_product
from glm_dist.inference.tiles import RowTiles


def open_adapters(folders: Mapping[str, str | Path], base: Path) -> dict[str, AdapterFolder]:
    """Adapters by the names that requests call them by.

    Raises:
        ModelError: naming each one that cannot stand beside this model.
    """
    found = {name: AdapterFolder(Path(folder).expanduser()) for name, folder in folders.items()}
    whole = hash_model(base) if found else ""
    problems = [
        f"{name} ({adapter.folder}): {problem}"
        for name, adapter in found.items()
        if (problem := _obstacle(adapter, whole))
    ]
    if problems:
        raise ModelError(f"adapters: {'; '.join(problems)}")
    return found


def _obstacle(adapter: AdapterFolder, base_sha256: str) -> str | None:
    if not adapter.tuning.is_low_rank:
        return f"is of kind {adapter.tuning.kind}; serve it by itself, as a model"
    if adapter.settings.head.is_classifier:
        return "has a head of its own; serve it by itself, as a model"
    if adapter.base_sha256 != base_sha256:
        return "was trained beside other weights; serve the model it was trained beside"
    return None


class Adapters:
    """All adapters of an engine, and which rows of a pass are whose."""

    def __init__(self, folders: Mapping[str, AdapterFolder] | None = None) -> None:
        self._folders = dict(folders or {})
        ranks = [folder.tuning.rank for folder in self._folders.values()]
        self.rank = max(ranks, default=0)
        self.numbers: Tensor | None = None
        """Of each row of the pass: 0 for none, else the place of its adapter from 1; None where
        no row has one."""
        self.mask: Tensor | None = None
        """[rows, adapters * rank]: 1 where a row's own adapter is."""

    @property
    def names(self) -> tuple[str, ...]:
        """What requests call them by, in the order of their numbers from 1."""
        return tuple(self._folders)

    def select(self, numbers: np.ndarray, like: Tensor) -> None:
        """Say whose the rows of the next pass are, see `numbers`; activations are as `like`."""
        self.numbers = self.mask = None
        if numbers.any():
            owners = np.repeat(np.arange(1, len(self._folders) + 1), self.rank)
            self.numbers = torch.from_numpy(numbers).to(like.device)
            self.mask = torch.from_numpy(owners == numbers[:, None]).to(like)

    def beside(
        self, name: str, weight: Tensor, bias: Tensor | None, tiles: RowTiles
    ) -> "LowRank | None":
        """What stands beside the map `name` of the model."""
        folders = list(self._folders.values())
        if not any(name in folder.targets for folder in folders):
            return None
        parts = [_parts(folder, name, weight, self.rank) for folder in folders]
        down = torch.cat([each for each, *_ in parts]).to(weight)
        up = torch.cat([each for _, each, _ in parts], dim=1).to(weight)
        products = build_product(down, None, False), build_product(up, None, False)
        if all(folder.tuning.kind != "dora" for folder in folders):
            return LowRank(self, products, tiles)
        gains = torch.stack([torch.ones(len(weight)), *(gain for *_, gain in parts)]).to(weight)
        return ScaledLowRank(self, products, tiles, gains, bias)


def _parts(
    folder: AdapterFolder, name: str, weight: Tensor, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """[rank, in], [out, rank] scaled, and factors of outputs [out]: zeros and ones if no target."""
    outputs, inputs = weight.shape
    down, up, gain = torch.zeros(rank, inputs), torch.zeros(outputs, rank), torch.ones(outputs)
    if name in folder.targets:
        tuning = folder.tuning
        down[: tuning.rank] = folder[f"{name}.lora_A.weight"]
        up[:, : tuning.rank] = folder[f"{name}.lora_B.weight"] * (tuning.alpha / tuning.rank)
        if tuning.kind == "dora":
            lengths = torch.linalg.vector_norm(weight.detach().float().cpu() + up @ down, dim=1)
            gain = folder[f"{name}.lora_magnitude_vector"] / lengths
    return down, up, gain


class LowRank:
    """What adapters add to the outputs of one map."""

    def __init__(
        self, adapters: Adapters, products: tuple[Multiply, Multiply], tiles: RowTiles
    ) -> None:
        """Args: whose rows are whose; to the middle and back out of it; the sizes of tiles."""
        self._adapters, self._tiles = adapters, tiles
        self._down, self._up = products

    def add(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Outputs [rows, out] with what each row's own adapter makes of its inputs."""
        mask = self._adapters.mask
        if mask is None:
            return outputs
        middle = self._tiles.run(self._down, inputs) * mask
        return outputs + self._tiles.run(self._up, middle)


class ScaledLowRank(LowRank):
    """With DoRA's factors of whole rows, 1 for rows of other adapters."""

    def __init__(
        self,
        adapters: Adapters,
        products: tuple[Multiply, Multiply],
        tiles: RowTiles,
        gains: Tensor,
        bias: Tensor | None,
    ) -> None:
        """Args, further: factors [1 + adapters, out]; the map's own bias, which has none."""
        super().__init__(adapters, products, tiles)
        self._gains, self._bias = gains, bias

    def add(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """See `LowRank`."""
        numbers = self._adapters.numbers
        if numbers is None:
            return outputs
        gains = self._gains.index_select(0, numbers)
        scaled = super().add(inputs, outputs) * gains
        return scaled if self._bias is None else scaled + self._bias * (1 - gains)
