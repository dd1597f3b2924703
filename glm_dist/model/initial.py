"""Weights of another model to begin with: the same names, and tables that may have grown.

It stands apart because it is checked by headers alone, before any worker starts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from glm_dist.errors import ModelError
from glm_dist.model.weight_files import check_shapes

HEADS = ("score.", "output_layer.")
"""Begin the names of what is made of the last hidden states alone."""
GROWING_TABLES = (
    "word_embeddings.weight",
    "output_layer.weight",
    "transformer.position_embeddings.weight",
    "transformer.block_position_embeddings.weight",
)
"""Tables whose further rows are drawn anew: of a longer row, or of a larger vocabulary."""


class Weights(Protocol):
    """Tensors by name, such as a `WeightFolder`."""

    folder: Path
    shapes: dict[str, tuple[int, ...]]

    def __getitem__(self, name: str) -> Tensor:
        """A tensor."""


def check_initial_weights(
    folder: Weights, shapes: Mapping[str, tuple[int, ...]], *, with_head: bool = True
) -> dict[str, tuple[int, int]]:
    """Tables with more or fewer rows than there: rows found and rows needed, by name.

    Args:
        folder: the weights to begin with.
        shapes: those of the model that is to be trained.
        with_head: whether both classify alike; else the head begins anew.

    Raises:
        ModelError: naming each weight that does not fit.
    """
    heads = () if with_head else HEADS
    expected = {name: shape for name, shape in shapes.items() if not name.startswith(heads)}
    found_shapes = {n: shape for n, shape in folder.shapes.items() if not n.startswith(heads)}
    resized = {}
    for name in GROWING_TABLES:
        found, needed = found_shapes.get(name), expected.get(name)
        if found is not None and needed is not None and found[1:] == needed[1:]:
            expected[name] = found
            if found != needed:
                resized[name] = (found[0], needed[0])
    check_shapes(folder.folder, found_shapes, expected)
    return resized


@torch.no_grad()
def load_initial_weights(
    model: nn.Module, folder: Weights, vocab_size: int, *, with_head: bool = True
) -> None:
    """Overwrite a model's weights; rows that the folder lacks keep what was drawn for them.

    Args:
        model: freshly initialised, in fp32 on the host.
        folder: checked weights.
        vocab_size: ids that the folder's model knows; rows past them are padding.
        with_head: whether its head is taken too.
    """
    for name, parameter in model.named_parameters():
        if not with_head and name.startswith(HEADS):
            continue
        weight = folder[name]
        if name not in GROWING_TABLES:
            parameter.copy_(weight)
            continue
        known = vocab_size if name in GROWING_TABLES[:2] else len(weight)
        rows = min(known, len(parameter))
        parameter[:rows] = weight[:rows].to(parameter.dtype)


def check_vocabulary(old: list[str], new: list[str]) -> None:
    """Ids that both vocabularies have must mean the same.

    Raises:
        ModelError: naming the first id that does not.
    """
    for token, (one, other) in enumerate(zip(old, new, strict=False)):
        if one != other:
            raise ModelError(
                f"init_from: token {token} is {one!r} there and {other!r} in the dataset; prepare "
                "the data with that model's tokenizer (tokenizer_path)"
            )
