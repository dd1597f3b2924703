"""Pieces of the fp32 state as live views, and what every engine does with them alike.

They stand apart because saving, loading, resizing, exporting and counting bytes need no more than
these views, wherever an engine keeps the memory behind them.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW

from glm_dist.engine.interface import STATE_KEYS, ReadSlice, Slice


class Fragment(NamedTuple):
    """Flat views of the state of consecutive elements of one parameter; writing to them counts."""

    name: str
    global_shape: tuple[int, ...]
    offset: int
    tensors: dict[str, Tensor]
    step: Tensor

    @property
    def numel(self) -> int:
        """Elements covered."""
        return self.tensors["master"].numel()

    def narrow(self, start: int, length: int) -> "Fragment":
        """The part from `start`, counted within this fragment."""
        tensors = {key: tensor.narrow(0, start, length) for key, tensor in self.tensors.items()}
        return self._replace(offset=self.offset + start, tensors=tensors)


def whole_fragments(masters: Iterable[tuple[str, nn.Parameter]], adam: AdamW) -> list[Fragment]:
    """One fragment for each parameter, where every rank keeps all of them."""
    return [
        Fragment(name, tuple(master.shape), 0, flat_state(adam, master), adam.state[master]["step"])
        for name, master in masters
    ]


def flat_state(adam: AdamW, master: nn.Parameter) -> dict[str, Tensor]:
    """Flat live views of a master weight and its moments."""
    state = adam.state[master]
    tensors = (master.detach(), state["exp_avg"], state["exp_avg_sq"])
    return {key: tensor.view(-1) for key, tensor in zip(STATE_KEYS, tensors, strict=True)}


def even_share(fragments: list[Fragment], rank: int, world_size: int) -> Iterator[Fragment]:
    """This rank's part of what all ranks hold: equal element counts, nothing twice."""
    total = sum(fragment.numel for fragment in fragments)
    first, last = total * rank // world_size, total * (rank + 1) // world_size
    position = 0
    for fragment in fragments:
        start, end = max(first - position, 0), min(last - position, fragment.numel)
        if start < end:
            yield fragment.narrow(start, end - start)
        position += fragment.numel


def as_slices(fragments: Iterable[Fragment]) -> Iterator[Slice]:
    """The fragments as they are written to a checkpoint."""
    for fragment in fragments:
        name, shape, offset, tensors, step = fragment
        yield Slice(name, shape, offset, tensors, int(step))


@torch.no_grad()
def fill(fragments: Iterable[Fragment], read: ReadSlice) -> None:
    """Overwrite the state behind the fragments."""
    for fragment in fragments:
        values = read(fragment.name, fragment.offset, fragment.numel)
        for key, tensor in fragment.tensors.items():
            tensor.copy_(values[key])
        fragment.step.fill_(int(values["step"]))


@torch.no_grad()
def gather_weights(
    fragments: Iterable[Fragment],
    shapes: dict[str, tuple[int, ...]],
    rank: int,
    device: torch.device,
) -> dict[str, Tensor] | None:
    """Master weights by name on rank 0's host, None elsewhere, one parameter at a time."""
    own = {fragment.name: fragment for fragment in fragments}
    weights: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        flat = torch.zeros(torch.Size(shape).numel(), dtype=torch.float32, device=device)
        if name in own:
            part = own[name]
            flat.narrow(0, part.offset, part.numel).copy_(part.tensors["master"])
        if dist.is_initialized():
            dist.reduce(flat, dst=0)
        if rank == 0:
            weights[name] = flat.view(shape).cpu()
    return weights if rank == 0 else None
