"""Files on any pyarrow file system: s3://, gs://, abfss:// and whatever else it opens.

They stand apart because pyarrow gives strings and calls where checkpoints are read by paths.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from glm_dist.errors import CheckpointError

COPY_BYTES = 16 << 20
"""Written at a time: above the 5 MiB that S3 asks of each part of an upload."""


class Size(NamedTuple):
    """What is asked of a file's status."""

    st_size: int


class AnyPath(Protocol):
    """Those methods of `pathlib.Path` that checkpoints are read by."""

    @property
    def name(self) -> str:
        """The last part."""

    def __truediv__(self, name: str, /) -> "AnyPath":
        """What has this name inside it."""

    def open(self, mode: Any) -> Any:
        """The bytes, to be read from any position."""

    def read_text(self, encoding: str | None = None) -> str:
        """The whole content."""

    def iterdir(self) -> Iterator["AnyPath"]:
        """What lies inside it."""

    def stat(self) -> Any:
        """Its size, as `st_size`."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file."""


class RemotePath:
    """A path on a pyarrow file system; `str` of it is what `open_location` opens."""

    def __init__(self, filesystem: fs.FileSystem, path: str, url: str = "") -> None:
        """Args: `path` as the file system knows it, `url` that of the file system's own root."""
        self.filesystem, self.path = filesystem, path.rstrip("/")
        self._url = url

    @property
    def name(self) -> str:
        """See `AnyPath`."""
        return self.path.rpartition("/")[2]

    def __truediv__(self, name: str, /) -> "RemotePath":
        return RemotePath(self.filesystem, f"{self.path}/{name}", self._url)

    def __str__(self) -> str:
        head, mark, query = self._url.partition("?")
        return f"{head}{self.path}{mark}{query}"

    def __hash__(self) -> int:
        return hash(self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(other) == str(self)

    def open(self, mode: Any) -> Any:
        """See `AnyPath`; nothing is read ahead."""
        assert mode == "rb", "objects are written whole"
        return self.filesystem.open_input_file(self.path)

    def read_text(self, encoding: str | None = None) -> str:
        """See `AnyPath`."""
        with self.filesystem.open_input_stream(self.path) as stream:
            return stream.read().decode(encoding or "utf-8")

    def iterdir(self) -> Iterator["RemotePath"]:
        """See `AnyPath`."""
        for found in self.files(recursive=False):
            yield self / found.base_name

    def files(self, *, recursive: bool) -> list[fs.FileInfo]:
        """What lies inside it, with size and time; nothing where it does not exist."""
        inside = fs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        return self.filesystem.get_file_info(inside)

    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound

    def stat(self) -> Size:
        """See `AnyPath`."""
        info = self.filesystem.get_file_info(self.path)
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(str(self))
        return Size(info.size)

    def write_json(self, value: Any) -> None:
        """Write JSON, at once where the file system is an object store."""
        with self.filesystem.open_output_stream(self.path) as stream:
            stream.write(json.dumps(value, indent=1).encode() + b"\n")

    def upload(self, source: Path) -> None:
        """Copy a local file here."""
        with source.open("rb") as file, self.filesystem.open_output_stream(self.path) as stream:
            while part := file.read(COPY_BYTES):
                stream.write(part)

    def unlink(self, missing_ok: bool = False) -> None:
        """See `AnyPath`."""
        try:
            self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self) -> None:
        """Remove a folder and all in it."""
        self.filesystem.delete_dir(self.path)


def is_url(location: str) -> bool:
    """Whether it names a file system, rather than a path of this machine."""
    return "://" in location


def open_location(location: str) -> Path | RemotePath:
    """The path a text stands for: a URL that pyarrow knows, or one of this machine.

    Raises:
        CheckpointError: when no file system opens the URL, or it holds a password.
    """
    if not is_url(location):
        return Path(location)
    parts = urlsplit(location)
    if parts.password:
        raise CheckpointError(
            f"{parts.scheme}://…@{parts.hostname}{parts.path}: holds a secret, which would go into "
            "configs and logs; take it out and give it by the environment, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    try:
        filesystem, path = fs.FileSystem.from_uri(location)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CheckpointError(f"{location}: no file system opens it ({error})") from None
    if isinstance(filesystem, fs.LocalFileSystem):
        return Path(path)
    head, mark, query = location.partition("?")
    root = head.rstrip("/").removesuffix(path.rstrip("/"))
    return RemotePath(filesystem, path, f"{root}{mark}{query}")
