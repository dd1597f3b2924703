"""Files and folders that survive a power cut: the few storage operations checkpoints are made of.

They stand apart because files of this machine are written by them alone; `remote.py` has those of
other storage.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol


def flush_to_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk, not only in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Readable(Protocol):
    """A path that can be opened, here or elsewhere."""

    def open(self, mode: str) -> Any:
        """The file's bytes."""


def hash_file(path: Readable) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a temporary name, on the disk when this returns."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    flush_to_disk(temporary)
    temporary.replace(path)
    flush_to_disk(path.parent)


def append_json_line(path: Path, value: Any) -> None:
    """Append one line, on the disk when this returns; a line torn by a crash is closed first."""
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(value).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> Iterator[Any]:
    """The values of all whole lines; a torn one was never committed and is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def rename_folder(folder: Path, name: str) -> Path:
    """Give a folder a new name beside itself, atomically and on the disk; the new path."""
    target = folder.with_name(name)
    folder.rename(target)
    flush_to_disk(target.parent)
    return target


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it; what cannot be removed stays."""
    shutil.rmtree(folder, ignore_errors=True)
