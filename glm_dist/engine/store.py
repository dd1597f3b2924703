"""How checkpoints come to lie, and to be gone, on a disk that all ranks share.

It stands apart from the catalogue, which decides, and beside `ObjectStore`, which does the same
where nothing can be renamed.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from glm_dist.engine.checkpoint import MANIFEST_NAME, FileRecord
from glm_dist.engine.remote import AnyPath
from glm_dist.engine.storage import (
    append_json_line,
    flush_to_disk,
    hash_file,
    read_json_lines,
    remove_folder,
    rename_folder,
    write_json,
)

LINEAGE_NAME = "lineage.jsonl"
OWNER_NAME = "owner.json"
NOTES = "leases"
COMMITTED = re.compile(r"checkpoint-(\d{8,})")

State = Literal["committed", "damaged", "retired", "unfinished"]


class Found(NamedTuple):
    """A folder that is named as a checkpoint."""

    folder: AnyPath
    state: State


class Store(Protocol):
    """A folder of checkpoints that all ranks reach; one process at a time changes what counts."""

    @property
    def folder(self) -> AnyPath:
        """Where it is."""

    def write_file(
        self, step: int, attempt: str, name: str, save: Callable[[Path], None]
    ) -> FileRecord:
        """Keep what `save` writes to a path of this machine, under a name no one else uses."""

    def commit(
        self, step: int, attempt: str, manifest: dict[str, Any], permit: Callable[[], None]
    ) -> AnyPath:
        """Make what was written a checkpoint, whole or not at all; its folder.

        `permit` raises, right before, where it must not be.
        """

    def abandon(self, step: int, attempt: str) -> None:
        """Remove what was written and will not be committed."""

    def found(self) -> list[Found]:
        """All folders named as checkpoints, the newest first."""

    def set_aside(self, folder: AnyPath, reason: str) -> AnyPath:
        """Say for good that a folder is damaged; where it lies then."""

    def retire(self, folder: AnyPath, attempt: str) -> None:
        """Show that a checkpoint is retired, which its record says already."""

    def remove(self, folder: AnyPath) -> None:
        """Remove a folder, which stops being a checkpoint before anything in it is gone."""

    def append(self, record: dict[str, Any]) -> None:
        """Add a record to the lineage."""

    def records(self) -> list[dict[str, Any]]:
        """The lineage, oldest first."""

    def write_note(self, name: str, value: Any) -> AnyPath:
        """Leave a small file among the notes; its path."""

    def notes(self) -> list[AnyPath]:
        """All of them."""

    def owner(self) -> str | None:
        """Which run has claimed the store."""

    def claim(self, owner: str) -> None:
        """Claim it, where nobody else has."""


class DiskStore:
    """Checkpoints on a POSIX file system: a folder appears by one rename, when it is whole."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def write_file(
        self, step: int, attempt: str, name: str, save: Callable[[Path], None]
    ) -> FileRecord:
        """See `Store`; on the disk and hashed as it lies there when this returns."""
        folder = self._unfinished(step, attempt)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        save(path)
        flush_to_disk(path)
        return FileRecord(name, os.path.getsize(path), hash_file(path))

    def commit(
        self, step: int, attempt: str, manifest: dict[str, Any], permit: Callable[[], None]
    ) -> Path:
        """See `Store`."""
        unfinished, name = self._unfinished(step, attempt), f"checkpoint-{step:08d}"
        flush_to_disk(unfinished)
        write_json(unfinished / MANIFEST_NAME, manifest)
        permit()
        if (self.folder / name).exists():
            # A run that redoes a step writes it anew; the old one makes room whole.
            rename_folder(self.folder / name, f"{name}.tmp-replaced-{attempt}")
        return rename_folder(unfinished, name)

    def abandon(self, step: int, attempt: str) -> None:
        """See `Store`."""
        remove_folder(self._unfinished(step, attempt))

    def found(self) -> list[Found]:
        """See `Store`."""
        if not self.folder.is_dir():
            return []
        folders = [path for path in self.folder.iterdir() if COMMITTED.match(path.name)]
        return [Found(path, _state(path)) for path in sorted(folders, reverse=True)]

    def set_aside(self, folder: AnyPath, reason: str) -> Path:
        """See `Store`."""
        name = f"{folder.name}.damaged-{reason}"
        if (self.folder / name).exists():
            name += f"-{uuid.uuid4().hex[:6]}"
        return rename_folder(self.folder / folder.name, name)

    def retire(self, folder: AnyPath, attempt: str) -> None:
        """See `Store`."""
        rename_folder(self.folder / folder.name, f"{folder.name}.retired-{attempt}")

    def remove(self, folder: AnyPath) -> None:
        """See `Store`."""
        path = self.folder / folder.name
        if COMMITTED.fullmatch(path.name):
            path = rename_folder(path, f"{path.name}.tmp-removed")
        remove_folder(path)

    def append(self, record: dict[str, Any]) -> None:
        """See `Store`."""
        append_json_line(self.folder / LINEAGE_NAME, record)

    def records(self) -> list[dict[str, Any]]:
        """See `Store`."""
        return list(read_json_lines(self.folder / LINEAGE_NAME))

    def write_note(self, name: str, value: Any) -> Path:
        """See `Store`."""
        path = self.folder / NOTES / name
        path.parent.mkdir(exist_ok=True)
        write_json(path, value)
        return path

    def notes(self) -> list[AnyPath]:
        """See `Store`."""
        return [*self._notes()]

    def owner(self) -> str | None:
        """See `Store`."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / OWNER_NAME).read_text(encoding="utf-8")
        return None

    def claim(self, owner: str) -> None:
        """See `Store`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), (self.folder / OWNER_NAME).open("x") as file:
            file.write(owner)

    def _notes(self) -> Iterator[Path]:
        return (self.folder / NOTES).glob("*.json")

    def _unfinished(self, step: int, attempt: str) -> Path:
        return self.folder / f"checkpoint-{step:08d}.tmp-{attempt}"


def _state(folder: Path) -> State:
    _, _, rest = folder.name.partition(".")
    if not rest:
        return "committed"
    kinds: tuple[State, ...] = ("damaged", "retired")
    return next((kind for kind in kinds if rest.startswith(kind)), "unfinished")
