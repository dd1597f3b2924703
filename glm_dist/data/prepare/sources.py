"""Which files a source holds, and how the work is cut: a pure function of the inputs.

The cut does not depend on workers, so the shards do not either.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from glm_dist.config import home
from glm_dist.data.prepare.settings import PrepareSettings, SourceSettings
from glm_dist.errors import DataError

FORMATS = {
    ".txt": "text",
    ".md": "text",
    ".markdown": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".bz2", ".zst")
SPLITTABLE = ("text", "jsonl")


@dataclass(frozen=True)
class FilePart:
    """A whole file, or the lines of one that begin in [start, end)."""

    source: str
    language: str | None
    path: str
    format: str
    text_field: str | int | None
    start: int
    end: int
    size: int


@dataclass(frozen=True)
class Partition:
    """The input of one task and so of one shard."""

    number: int
    parts: tuple[FilePart, ...]

    @property
    def num_bytes(self) -> int:
        """Input bytes as they lie on disk."""
        return sum(part.end - part.start for part in self.parts)


def plan_partitions(settings: PrepareSettings) -> list[Partition]:
    """Cut the sources into partitions of about `partition_bytes`.

    Raises:
        DataError: naming every source without readable files.
    """
    problems: list[str] = []
    parts: list[FilePart] = []
    for source in settings.sources:
        try:
            parts += _parts(source, settings.partition_bytes)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return list(_group(parts, settings.partition_bytes))


def _group(parts: Sequence[FilePart], limit: int) -> Iterator[Partition]:
    number, group, size = 0, list[FilePart](), 0
    for part in parts:
        length = part.end - part.start
        if group and (size + length > limit or group[-1].source != part.source):
            yield Partition(number, tuple(group))
            number, group, size = number + 1, [], 0
        group.append(part)
        size += length
    if group:
        yield Partition(number, tuple(group))


def _parts(source: SourceSettings, limit: int) -> Iterator[FilePart]:
    for path, size in list_files(source):
        kind = _format_of(source, path)
        can_split = kind in SPLITTABLE and not path.endswith(COMPRESSIONS)
        step = limit if can_split else max(size, 1)
        for start in range(0, max(size, 1), step):
            end = min(start + step, size)
            yield FilePart(
                source.name, source.language, path, kind, source.text_field, start, end, size
            )


def list_files(source: SourceSettings) -> list[tuple[str, int]]:
    """Path and size of every file, sorted by path.

    Raises:
        DataError: when there is none.
    """
    if "://" in source.path:
        return _list_remote(source)
    given = source.path.replace("${GLM_DIST_HOME}", str(home()))
    path = Path(os.path.expandvars(given)).expanduser()
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if _is_text_file(file)]
        if not found:
            raise DataError(
                f"source {source.name}: the folder {path} holds no text files; known endings are "
                f"{' '.join(FORMATS)}, also with {' '.join(COMPRESSIONS)}"
            )
    else:
        found = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        found = [file for file in found if file.is_file()]
        if not found:
            raise DataError(
                f"source {source.name}: {path} does not exist (looked in {Path.cwd()}); give a "
                "file, a folder or a glob"
            )
    return [(str(file), file.stat().st_size) for file in found]


def _list_remote(source: SourceSettings) -> list[tuple[str, int]]:
    try:
        system, path = fs.FileSystem.from_uri(source.path)
        info = system.get_file_info(path)
        if info.type == fs.FileType.Directory:
            found = system.get_file_info(fs.FileSelector(path, recursive=True))
        else:
            found = [info]
    except (OSError, ValueError) as error:
        raise DataError(f"source {source.name}: {source.path} cannot be read ({error})") from None
    scheme = source.path.split("://")[0]
    files = [(f"{scheme}://{file.path}", file.size) for file in found if file.is_file]
    if not files:
        raise DataError(f"source {source.name}: {source.path} holds no files")
    return sorted(files)


def _is_text_file(path: Path) -> bool:
    return path.is_file() and _suffix(path.name) in FORMATS and not path.name.startswith(".")


def _suffix(name: str) -> str:
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return Path(name).suffix.lower()


def _format_of(source: SourceSettings, path: str) -> str:
    if source.format != "auto":
        return source.format
    kind = FORMATS.get(_suffix(path))
    if kind is None:
        raise DataError(
            f"source {source.name}: the ending of {path} does not tell its format; set format to "
            "text, jsonl, json, csv, tsv or parquet"
        )
    return kind
