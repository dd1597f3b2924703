"""Checkpoint files of the 2021 reference implementation, whole or split over model-parallel ranks.

They are pickles: read by torch's weights-only loader alone, and meant to be converted at once.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_dist.errors import ModelError

PATTERNS = ("mp_rank_*_model_states.pt", "pytorch_model.bin")
_SPLIT_BY_COLUMN = ("attention.dense.weight", "mlp.dense_4h_to_h.weight")
_SPLIT_BY_ROW = ("word_embeddings.weight", "mlp.dense_h_to_4h.weight", "mlp.dense_h_to_4h.bias")
_FUSED = ("attention.query_key_value.weight", "attention.query_key_value.bias")


def find_reference_files(folder: Path) -> list[Path]:
    """The files of a checkpoint, in rank order; none where the folder holds no such checkpoint."""
    for pattern in PATTERNS:
        files = sorted(folder.glob(pattern))
        if files:
            return files
    return []


def read_reference_files(files: list[Path]) -> dict[str, Tensor]:
    """The weights of a checkpoint under the reference's names, joined over its ranks.

    Raises:
        ModelError: when a file holds anything but weights, or the ranks do not fit together.
    """
    states = [_read(path) for path in files]
    if len(states) == 1:
        return dict(states[0])
    names = states[0].keys()
    for path, state in zip(files, states, strict=True):
        if state.keys() != names:
            wrong = min(state.keys() ^ names)
            raise ModelError(
                f"{path}: {wrong} is not in all files; they are of several checkpoints"
            )
    return {name: _join(name, [state[name] for state in states]) for name in names}


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{path}: is not opened, because it is damaged or holds more than weights ({reason})"
        ) from None
    for wrapper in ("module", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise ModelError(f"{path}: holds no weights by name")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _join(name: str, parts: list[Tensor]) -> Tensor:
    """One weight of its ranks' shares; queries, keys and values are split each for itself."""
    if name.endswith(_FUSED):
        blocks = zip(*(part.chunk(3) for part in parts), strict=True)
        return torch.cat([torch.cat(block) for block in blocks])
    if name.endswith(_SPLIT_BY_ROW):
        return torch.cat(parts)
    if name.endswith(_SPLIT_BY_COLUMN):
        return torch.cat(parts, dim=1)
    return parts[0]
