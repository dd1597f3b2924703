"""Our checkpoint format: named slices as safetensors, one file a rank, and a manifest.

It stands apart from the engines because it knows only slices: another world size, another ZeRO
stage, export and the twin are readings of the same files. A folder is a checkpoint exactly when
its manifest verifies; which folders count is the catalogue's business.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from glm_dist.engine.interface import STATE_KEYS, Engine, Slice
from glm_dist.engine.remote import AnyPath, RemotePath
from glm_dist.engine.snapshot import SliceSource
from glm_dist.engine.storage import hash_file
from glm_dist.engine.tensor_file import TensorFile
from glm_dist.errors import CheckpointError
from glm_dist.model.weight_files import make_readable

SCHEMA_VERSION = 2
"""1: no loss scale, for there was no fp16. Older ones are read, newer ones are not."""
MANIFEST_NAME = "manifest.json"
_INDEX_KEY = "slices"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint folder."""

    folder: AnyPath
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps of the loop behind it."""
        return int(self.manifest["step"])

    @property
    def state(self) -> dict[str, Any]:
        """What the loop gave to be kept."""
        return self.manifest["state"]

    @property
    def attempt(self) -> str:
        """Random name of the save that wrote it."""
        return str(self.manifest["attempt"])


@dataclass(frozen=True)
class FileRecord:
    """A file of a checkpoint as its manifest lists it."""

    name: str
    size_bytes: int
    sha256: str


def save_slices(path: Path, slices: Iterable[Slice]) -> None:
    """Write one rank's slices to a file of this machine."""
    tensors: dict[str, Tensor] = {}
    index: dict[str, Any] = {}
    for piece in slices:
        index[piece.name] = {
            "shape": list(piece.global_shape),
            "offset": piece.offset,
            "length": piece.tensors["master"].numel(),
            "step": piece.step,
            "keys": list(piece.tensors),
        }
        for key, tensor in piece.tensors.items():
            tensors[f"{key}/{piece.name}"] = tensor.detach().cpu().contiguous()
    save_file(tensors, path, metadata={_INDEX_KEY: json.dumps(index)})
    make_readable(path)


def build_manifest(
    step: int, attempt: str, files: list[FileRecord], engine: SliceSource, state: Any
) -> dict[str, Any]:
    """What makes a folder a checkpoint once it lies there."""
    described = engine.describe()
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "attempt": attempt,
        "world_size": engine.world_size,
        **{name: described[name] for name in ("backend", "zero_stage", "dtype", "loss_scale")},
        "files": {
            file.name: {"size_bytes": file.size_bytes, "sha256": file.sha256} for file in files
        },
        "state": state,
    }
    return {**manifest, "manifest_sha256": _own_hash(manifest)}


def _own_hash(manifest: dict[str, Any]) -> str:
    """Hash of a manifest's values, which no other file could vouch for."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


class DamagedError(Exception):
    """A folder is no checkpoint; `reason` is short enough to be part of a folder's name."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


def read_manifest(folder: AnyPath) -> Checkpoint:
    """The checkpoint a folder claims to be; its files are not looked at.

    Raises:
        DamagedError: when the manifest is missing, unreadable or of another schema.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedError("no-manifest", f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        _check_reached(path, error)
        raise DamagedError("manifest", f"{path} cannot be read ({error})") from None
    if not isinstance(manifest, dict) or "schema_version" not in manifest:
        raise DamagedError("manifest", f"{path} is no manifest")
    if manifest.pop("manifest_sha256", None) != _own_hash(manifest):
        raise DamagedError("manifest", f"{path} is not what was written (sha256 differs)")
    version = manifest["schema_version"]
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: written with checkpoint schema {version}, this release reads "
            f"{SCHEMA_VERSION} and older; use a release that reads schema {version}"
        )
    return Checkpoint(folder, manifest)


def verify(folder: AnyPath) -> Checkpoint:
    """The checkpoint in a folder, every byte of it compared with its manifest.

    Raises:
        DamagedError: at the first difference.
    """
    checkpoint = read_manifest(folder)
    unknown = {path.name for path in folder.iterdir()} - {MANIFEST_NAME}
    unknown -= checkpoint.manifest["files"].keys()
    if unknown:
        raise DamagedError("extra-file", f"{folder / min(unknown)} is not in the manifest")
    for name, record in checkpoint.manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != record["size_bytes"]:
                raise DamagedError(
                    "size", f"{path} has {size} bytes and should have {record['size_bytes']}"
                )
            if hash_file(path) != record["sha256"]:
                raise DamagedError("sha256", f"{path} is not what was written (sha256 differs)")
        except FileNotFoundError:
            raise DamagedError("missing-file", f"{path} does not exist") from None
        except OSError as error:
            _check_reached(path, error)
            raise DamagedError("unreadable", f"{path} cannot be read ({error})") from None
    return checkpoint


def _check_reached(path: AnyPath, error: Exception) -> None:
    """Tell a checkpoint that is damaged from storage that does not answer."""
    if isinstance(path, RemotePath) and isinstance(error, OSError):
        raise CheckpointError(
            f"{path}: cannot be reached ({error}); nothing is wrong with the checkpoint, start "
            "again once its storage answers"
        )


@dataclass(frozen=True)
class _Piece:
    offset: int
    length: int
    step: int
    keys: tuple[str, ...]
    file: TensorFile


class SliceReader:
    """Reads any range of any parameter's state, whatever ranks it was written by."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._folder = checkpoint.folder
        self._pieces: dict[str, list[_Piece]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.trained_names: set[str] = set()
        for name in checkpoint.manifest["files"]:
            self._read_index(TensorFile(checkpoint.folder / name))
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece.offset)

    def __call__(self, name: str, offset: int, length: int) -> dict[str, Tensor]:
        """See `ReadSlice`.

        Raises:
            CheckpointError: when the checkpoint does not hold the whole range.
        """
        result: dict[str, Tensor] = {}
        end, filled, step = offset + length, 0, 0
        for piece in self._pieces.get(name, []):
            start, stop = max(offset, piece.offset), min(end, piece.offset + piece.length)
            if start >= stop:
                continue
            for key in piece.keys:
                part = piece.file.read(f"{key}/{name}", start - piece.offset, stop - piece.offset)
                result.setdefault(key, part.new_empty(length))
                result[key][start - offset : stop - offset] = part
            filled, step = filled + stop - start, piece.step
        if filled != length:
            raise CheckpointError(
                f"{self._folder}: holds {filled} of the {length} elements from {offset} of "
                f"{name}; it belongs to another model"
            )
        return {**result, "step": torch.tensor(step)}

    def _read_index(self, file: TensorFile) -> None:
        for name, entry in json.loads(file.metadata[_INDEX_KEY]).items():
            self.shapes[name] = tuple(entry["shape"])
            keys = tuple(entry.get("keys", STATE_KEYS))
            piece = _Piece(entry["offset"], entry["length"], entry["step"], keys, file)
            self._pieces.setdefault(name, []).append(piece)
            if "exp_avg" in keys:
                self.trained_names.add(name)


def load_checkpoint(engine: Engine, checkpoint: Checkpoint) -> dict[str, Any]:
    """Fill an engine from a verified checkpoint; returns what the loop had kept.

    The checkpoint may come from another world size, ZeRO stage or backend.

    Raises:
        CheckpointError: when its parameters are not those of the engine's model.
    """
    reader = SliceReader(checkpoint)
    problems = _differences(reader.shapes, engine.parameter_shapes)
    for name in sorted(reader.shapes.keys() & engine.parameter_shapes.keys()):
        if (name in reader.trained_names) != (name in engine.trained_names):
            is_frozen = name in engine.trained_names
            problems.append(f"{name} was {'frozen' if is_frozen else 'trained'} there")
    if problems:
        raise CheckpointError(
            f"{checkpoint.folder}: is of another model: {'; '.join(problems[:5])}; use the model "
            f"settings it was trained with, or another run folder"
        )
    engine.load_slices(reader)
    engine.load_loss_scale(checkpoint.manifest.get("loss_scale"))
    return checkpoint.state


def read_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All fp32 master weights of a checkpoint by name, on the host, without an engine."""
    reader = SliceReader(checkpoint)
    return {
        name: reader(name, 0, torch.Size(shape).numel())["master"].view(shape)
        for name, shape in reader.shapes.items()
    }


def _differences(
    found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
) -> list[str]:
    problems = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    problems += [f"{name} is unknown" for name in found.keys() - wanted.keys()]
    problems += [
        f"{name} is {list(found[name])} and should be {list(wanted[name])}"
        for name in found.keys() & wanted.keys()
        if found[name] != wanted[name]
    ]
    return sorted(problems)
