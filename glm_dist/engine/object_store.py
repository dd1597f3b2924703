"""Checkpoints on object storage, where nothing can be renamed and each object appears whole.

Every save has a folder of its own, `checkpoint-<step>.<attempt>`, and is a checkpoint from the
moment its manifest is there. What is said of it later is said by further objects.
"""

import contextlib
import json
import re
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyarrow import fs

from glm_dist.engine.checkpoint import MANIFEST_NAME, FileRecord
from glm_dist.engine.remote import AnyPath, RemotePath, open_location
from glm_dist.engine.storage import hash_file
from glm_dist.engine.store import NOTES, OWNER_NAME, DiskStore, Found, State, Store

LINEAGE = "lineage"
DAMAGED = "damaged"
_NAME = re.compile(r"checkpoint-(\d{8,})\.[0-9a-f]+")


class ObjectStore:
    """Checkpoints below a path of any pyarrow file system."""

    def __init__(self, folder: RemotePath) -> None:
        self.folder = folder

    def write_file(
        self, step: int, attempt: str, name: str, save: Callable[[Path], None]
    ) -> FileRecord:
        """See `Store`; what lies there is as long as what was sent when this returns."""
        target = self._place(step, attempt)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / name
            save(path)
            record = FileRecord(name, path.stat().st_size, hash_file(path))
            self._make(target)
            (target / name).upload(path)
        stored = (target / name).stat().st_size
        if stored != record.size_bytes:
            raise OSError(f"{target / name} has {stored} of {record.size_bytes} bytes")
        return record

    def commit(
        self, step: int, attempt: str, manifest: dict[str, Any], permit: Callable[[], None]
    ) -> RemotePath:
        """See `Store`."""
        folder = self._place(step, attempt)
        permit()
        (folder / MANIFEST_NAME).write_json(manifest)
        return folder

    def abandon(self, step: int, attempt: str) -> None:
        """See `Store`."""
        with contextlib.suppress(OSError):
            self._place(step, attempt).remove_tree()

    def found(self) -> list[Found]:
        """See `Store`; of one step, the one whose manifest came last is first."""
        contents: dict[str, dict[str, fs.FileInfo]] = {}
        for info in self.folder.files(recursive=True):
            inside = info.path.removeprefix(self.folder.path).strip("/")
            name, _, file = inside.partition("/")
            if _NAME.fullmatch(name):
                contents.setdefault(name, {})[file] = info
        order = sorted(contents, key=lambda name: _age(name, contents[name]), reverse=True)
        return [Found(self.folder / name, _state(contents[name])) for name in order]

    def set_aside(self, folder: AnyPath, reason: str) -> RemotePath:
        """See `Store`; an object in the folder says so, and nothing else there is touched."""
        own = self.folder / folder.name
        (own / f"{DAMAGED}-{reason}.json").write_json({"reason": reason})
        return own

    def retire(self, folder: AnyPath, attempt: str) -> None:
        """See `Store`; the record is all there is."""

    def remove(self, folder: AnyPath) -> None:
        """See `Store`."""
        own = self.folder / folder.name
        (own / MANIFEST_NAME).unlink(missing_ok=True)
        own.remove_tree()

    def append(self, record: dict[str, Any]) -> None:
        """See `Store`; one object a record, numbered."""
        folder = self.folder / LINEAGE
        self._make(folder)
        number = len(folder.files(recursive=False))
        (folder / f"{number:06d}-{uuid.uuid4().hex[:12]}.json").write_json(record)

    def records(self) -> list[dict[str, Any]]:
        """See `Store`."""
        return [read for path in self._inside(LINEAGE) if (read := _read_json(path)) is not None]

    def write_note(self, name: str, value: Any) -> RemotePath:
        """See `Store`."""
        self._make(self.folder / NOTES)
        path = self.folder / NOTES / name
        path.write_json(value)
        return path

    def notes(self) -> list[AnyPath]:
        """See `Store`."""
        return [*self._inside(NOTES)]

    def owner(self) -> str | None:
        """See `Store`."""
        return _read_json(self.folder / OWNER_NAME)

    def claim(self, owner: str) -> None:
        """See `Store`.

        pyarrow cannot write only where nothing is, so of two that claim at once the later one has
        it; the other finds out at its next look, which comes before every commit.
        """
        if self.owner() is None:
            self._make(self.folder)
            (self.folder / OWNER_NAME).write_json(owner)

    def _place(self, step: int, attempt: str) -> RemotePath:
        return self.folder / f"checkpoint-{step:08d}.{attempt}"

    def _make(self, folder: RemotePath) -> None:
        """Where a file system has folders at all, they must be there first."""
        if folder.filesystem.type_name not in ("s3", "gcs"):
            folder.filesystem.create_dir(folder.path, recursive=True)

    def _inside(self, name: str) -> list[RemotePath]:
        infos = (self.folder / name).files(recursive=False)
        return [self.folder / name / base for base in sorted(info.base_name for info in infos)]


def open_store(location: str | Path | RemotePath) -> Store:
    """The store at a path, or at a URL that pyarrow opens.

    Raises:
        CheckpointError: when no file system opens the URL.
    """
    found = open_location(location) if isinstance(location, str) else location
    return ObjectStore(found) if isinstance(found, RemotePath) else DiskStore(found)


def _age(name: str, files: dict[str, fs.FileInfo]) -> tuple[int, int, str]:
    match = _NAME.fullmatch(name)
    manifest = files.get(MANIFEST_NAME)
    written = manifest.mtime_ns if manifest is not None else None
    return int(match[1]) if match else -1, written or 0, name


def _state(files: dict[str, fs.FileInfo]) -> State:
    if any(file.startswith(f"{DAMAGED}-") for file in files):
        return "damaged"
    return "committed" if MANIFEST_NAME in files else "unfinished"


def _read_json(path: RemotePath) -> Any:
    """What an object holds, None where there is none or it was cut off."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
