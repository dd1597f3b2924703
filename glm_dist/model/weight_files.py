"""Folders of safetensors files: opened lazily, checked by their headers, written shard by shard.

It stands apart because models far larger than memory pass through it one tensor at a time.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from glm_dist.errors import ModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SHARD_BYTES = 1 << 30


class WeightFolder:
    """The tensors of a folder by name; headers are read at once, tensors when asked for.

    Raises:
        ModelError: when there are no safetensors, or a file is not what it says.
    """

    def __init__(self, folder: str | Path, single_file: str = SINGLE_FILE) -> None:
        self.folder = Path(folder)
        self._single_file = single_file
        self._owners: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path, expected in self._files().items():
            self._open(path, expected)

    def __getitem__(self, name: str) -> Tensor:
        """A tensor, as it lies in its file; its pages are given back with it."""
        with safe_open(self._owners[name], framework="pt") as file:
            return file.get_tensor(name)

    def check(self, expected: dict[str, tuple[int, ...]]) -> None:
        """Compare names and shapes, all of them, before any tensor is read.

        Raises:
            ModelError: naming each difference.
        """
        check_shapes(self.folder, self.shapes, expected)

    def _files(self) -> dict[Path, set[str] | None]:
        """Each file, and the tensors it should hold where that is known."""
        index = self.folder / INDEX_FILE
        if not index.exists():
            single = self.folder / self._single_file
            if not single.exists():
                raise ModelError(self._nothing_there())
            return {single: None}
        try:
            owners = json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index}: is no index of weights ({error!r})") from None
        files: dict[Path, set[str] | None] = {}
        for tensor, name in owners:
            if not isinstance(name, str) or Path(name).name != name:
                raise ModelError(
                    f"{index}: {tensor} is said to lie in {name!r}, outside of the folder"
                )
            names = files.setdefault(self.folder / name, set())
            assert names is not None
            names.add(tensor)
        return files

    def _nothing_there(self) -> str:
        pickles = sorted(path.name for kind in PICKLES for path in self.folder.glob(kind))
        if pickles:
            return (
                f"{self.folder}: holds pickled weights ({pickles[0]}), which can run any code when "
                f"they are opened; convert them to safetensors where you trust them"
            )
        return f"{self.folder}: holds neither {self._single_file} nor {INDEX_FILE}"

    def _open(self, path: Path, expected: set[str] | None) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: cannot be read as safetensors ({error})") from None
        if expected is not None and shapes.keys() != expected:
            wrong = min(shapes.keys() ^ expected)
            raise ModelError(
                f"{path}: {wrong} is {'missing there' if wrong in expected else 'not in the index'}"
            )
        self._owners.update(dict.fromkeys(shapes, path))
        self.shapes.update(shapes)


class RenamedWeights:
    """The weights of a folder in another layout, looked at as a `WeightFolder` of ours.

    Args:
        source: the folder, already compared with what it should hold.
        names: our name: theirs, whose rows stand one behind the other in ours.
        shapes: of ours.
    """

    def __init__(
        self,
        source: WeightFolder,
        names: Mapping[str, Sequence[str]],
        shapes: dict[str, tuple[int, ...]],
    ) -> None:
        self.folder, self.shapes = source.folder, shapes
        self._source, self._names = source, names

    def __getitem__(self, name: str) -> Tensor:
        """A tensor by our name."""
        parts = [self._source[theirs] for theirs in self._names[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def check(self, expected: dict[str, tuple[int, ...]]) -> None:
        """See `WeightFolder`."""
        check_shapes(self.folder, self.shapes, expected)


def check_shapes(
    folder: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the tensors of a folder with those of the model that its `config.json` describes.

    Raises:
        ModelError: naming each difference.
    """
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is unknown" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {list(found[name])} and should be {list(expected[name])}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ModelError(
            f"{folder}: the weights do not fit config.json: {'; '.join(sorted(problems)[:8])}{more}"
        )


def write_folder(
    folder: str | Path,
    tensors: Iterable[tuple[str, Tensor]],
    documents: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
    single_file: str = SINGLE_FILE,
) -> Path:
    """Write tensors as they come, and JSON or text files beside them; whole or not at all.

    Args:
        folder: what is made; it must not exist.
        tensors: name and tensor; no more than a shard of them is in memory at a time.
        documents: file names to plain values, text or bytes.
        shard_bytes: size at which a file is closed and the next one begun.
        single_file: its name where there is but one.

    Raises:
        ModelError: when the folder is there already.
    """
    folder = Path(folder)
    if folder.exists():
        raise ModelError(f"{folder}: exists already; give another folder or remove it")
    temporary = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    try:
        _write_shards(temporary, tensors, shard_bytes, single_file)
        for name, value in documents.items():
            _write_document(temporary / name, value)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_shards(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int, single_file: str
) -> None:
    owners: list[set[str]] = []
    total = 0
    for shard in _in_shards(tensors, shard_bytes):
        save_file(shard, folder / f"shard-{len(owners)}", metadata={"format": "pt"})
        make_readable(folder / f"shard-{len(owners)}")
        owners.append(set(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(owners) == 1:
        (folder / "shard-0").rename(folder / single_file)
        return
    weight_map = {}
    for number, names in enumerate(owners):
        file = f"model-{number + 1:05d}-of-{len(owners):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_document(folder / INDEX_FILE, index)


def _in_shards(
    tensors: Iterable[tuple[str, Tensor]], shard_bytes: int
) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    if shard:
        yield shard


def make_readable(path: Path) -> None:
    """Give a file the rights that any new file has; safetensors gives it to its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _write_document(path: Path, value: Any) -> None:
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif isinstance(value, str):
        path.write_text(value, encoding="utf-8")
    else:
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
