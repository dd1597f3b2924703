"""Finished weights as one safetensors file, for inference, export and other tools."""

import hashlib
import uuid
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glm_dist.engine.storage import flush_to_disk
from glm_dist.errors import CheckpointError, ModelError
from glm_dist.model.weight_files import WeightFolder, make_readable

WEIGHTS_NAME = "model.safetensors"


def save_weights(
    folder: str | Path, weights: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> Path:
    """Write `model.safetensors` into a folder, whole or not at all; its path.

    Args:
        folder: made if it does not exist.
        weights: tensors by name.
        metadata: strings for the file's header, beside the customary format entry.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WEIGHTS_NAME
    temporary = folder / f"{WEIGHTS_NAME}.tmp-{uuid.uuid4().hex[:12]}"
    try:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(contiguous, temporary, metadata={"format": "pt", **(metadata or {})})
        make_readable(temporary)
        flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_to_disk(folder)
    return path


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, or of the folder that holds one.

    Raises:
        CheckpointError: when there is none or it cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            folder = WeightFolder(path)
            return {name: folder[name] for name in folder.shapes}
        return load_file(path)
    except (OSError, SafetensorError, ModelError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as model weights ({error}); give a folder with "
            f"{WEIGHTS_NAME} or such a file"
        ) from None


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """Of their bytes, in hex; each is copied to the host for it."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        flat = tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy()
        digest.update(flat.data)
    return digest.hexdigest()
