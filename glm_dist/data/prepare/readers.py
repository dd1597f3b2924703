"""Documents out of files: every format and compression gives the same stream of texts.

A record that cannot be read is an item of the stream too, so that it is counted and shown; a file
that cannot be read is an error that names it.
"""

import bz2
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from pyarrow import fs

from glm_dist.data.prepare.settings import PrepareSettings
from glm_dist.data.prepare.sources import FilePart
from glm_dist.errors import DataError

SKIPPED_AT_A_TIME = 1 << 20
TEXT_FIELDS = ("text", "content", "paragraphs", "abstract", "body", "document")


@dataclass(frozen=True)
class Bad:
    """A record that is left out, where it stands, and why."""

    path: str
    place: str
    reason: str


Item = str | Bad


def read_documents(part: FilePart, settings: PrepareSettings) -> Iterator[Item]:
    """The documents of a file or a part of one.

    Raises:
        DataError: when the file is damaged or has no text, naming file, reason and remedy.
    """
    readers: dict[str, Callable[[FilePart, PrepareSettings], Iterator[Item]]] = {
        "text": _read_text,
        "jsonl": _read_jsonl,
        "json": _read_json,
        "csv": _read_table,
        "tsv": _read_table,
        "parquet": _read_parquet,
    }
    try:
        yield from readers[part.format](part, settings)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DataError(
            f"{part.path}: the compressed data is damaged ({error}); fetch the file again or leave "
            "it out"
        ) from None
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{part.path}: cannot be read ({error}); mend it or leave it out") from None


@contextmanager
def open_file(path: str) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed."""
    if "://" in path:
        system, inner = fs.FileSystem.from_uri(path)
        raw: BinaryIO = system.open_input_file(inner)
    else:
        raw = Path(path).open("rb")  # noqa: SIM115
    with raw:
        if path.endswith(".gz"):
            yield cast(BinaryIO, gzip.GzipFile(fileobj=raw))
        elif path.endswith(".bz2"):
            yield cast(BinaryIO, bz2.BZ2File(raw))
        elif path.endswith(".zst"):
            reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
            yield cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, reader)))
        else:
            yield raw


def _lines(part: FilePart, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Byte position and content of every line that begins in the part; None for one too long."""
    with open_file(part.path) as file:
        is_whole = part.start == 0 and part.end == part.size
        position = part.start
        if part.start:
            file.seek(part.start - 1)
            position += _skip_line(file) - 1
        while is_whole or position < part.end:
            line = file.readline(max_bytes + 1)
            if not line:
                return
            start, position = position, position + len(line)
            if len(line) <= max_bytes:
                yield start, line
                continue
            position += 0 if line.endswith(b"\n") else _skip_line(file)
            yield start, None


def _skip_line(file: BinaryIO) -> int:
    """Go behind the next line end; the bytes passed, of which few are in memory at a time."""
    passed, line = 0, b"begin"
    while line and not line.endswith(b"\n"):
        line = file.readline(SKIPPED_AT_A_TIME)
        passed += len(line)
    return passed


def _read_text(part: FilePart, settings: PrepareSettings) -> Iterator[Item]:
    """Documents of at most `text_document_bytes`, cut at an empty line, else where a line ends."""
    limit = settings.text_document_bytes
    lines, size, last_empty = list[bytes](), 0, 0
    for position, line in _lines(part, settings.max_record_bytes):
        if line is None:
            reason = f"a line longer than max_record_bytes {settings.max_record_bytes:,}"
            yield Bad(part.path, f"byte {position}", reason)
            continue
        if lines and size + len(line) > limit:
            cut = last_empty or len(lines)
            yield _decode(part, b"".join(lines[:cut]))
            lines = lines[cut:]
            size, last_empty = sum(map(len, lines)), 0
        lines.append(line)
        size += len(line)
        if not line.strip():
            last_empty = len(lines)
    if lines:
        yield _decode(part, b"".join(lines))


def _decode(part: FilePart, data: bytes) -> Item:
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        return Bad(part.path, "text", f"not UTF-8: {error.reason} ({data[error.start]:#04x})")


def _read_jsonl(part: FilePart, settings: PrepareSettings) -> Iterator[Item]:
    for position, line in _lines(part, settings.max_record_bytes):
        place = f"byte {position}"
        if line is None:
            reason = f"longer than max_record_bytes {settings.max_record_bytes:,}"
            yield Bad(part.path, place, reason)
        elif line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Bad(part.path, place, f"not JSON: {error}")
            else:
                yield _text_of(record, part, place)


def _read_json(part: FilePart, settings: PrepareSettings) -> Iterator[Item]:
    with open_file(part.path) as file:
        try:
            records = json.load(io.TextIOWrapper(file, encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{part.path}: not one JSON value ({error}); one value a line is format jsonl"
            ) from None
    for number, record in enumerate(records if isinstance(records, list) else [records]):
        yield _text_of(record, part, f"record {number}")


class Tabs(csv.excel):
    """Columns between tabs; a quotation mark is a character like others."""

    delimiter = "\t"
    quoting = csv.QUOTE_NONE


def _read_table(part: FilePart, settings: PrepareSettings) -> Iterator[Item]:
    csv.field_size_limit(settings.max_record_bytes)
    with open_file(part.path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.reader(text, dialect=Tabs if part.format == "tsv" else csv.excel)
        column = part.text_field
        if not isinstance(column, int):
            header = next(rows, [])
            column = _column(part, header)
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield Bad(part.path, f"line {rows.line_num}", str(error))
                continue
            if row is None:
                return
            if row:
                yield _cell(part, row, column, f"line {rows.line_num}")


def _cell(part: FilePart, row: list[str], column: int, place: str) -> Item:
    if column >= len(row):
        return Bad(part.path, place, f"{len(row)} columns, none numbered {column}")
    try:
        row[column].encode("utf-8")
    except UnicodeEncodeError:
        return Bad(part.path, place, "not UTF-8")
    return row[column].strip()


def _read_parquet(part: FilePart, settings: PrepareSettings) -> Iterator[Item]:
    with open_file(part.path) as file:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        column = names[_column(part, names)]
        for batch in table.iter_batches(batch_size=1024, columns=[column]):
            for number, value in enumerate(batch.column(0).to_pylist()):
                yield _text_of({column: value}, part, f"row {number}", column)


def _column(part: FilePart, names: list[str]) -> int:
    if isinstance(part.text_field, int) and part.text_field < len(names):
        return part.text_field
    wanted = [part.text_field] if part.text_field is not None else list(TEXT_FIELDS)
    for name in wanted:
        if name in names:
            return names.index(name)
    raise DataError(
        f"{part.path}: has no text column (looked for {', '.join(map(str, wanted))}; it has "
        f"{', '.join(names) or 'none'}); name it with text_field"
    )


def _text_of(record: Any, part: FilePart, place: str, field: str | None = None) -> Item:
    field = field if field is not None else part.text_field  # type: ignore[assignment]
    text = _flatten(record, (field,) if isinstance(field, str) else TEXT_FIELDS)
    if text is None:
        return Bad(part.path, place, "no text field; name it with text_field")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return Bad(part.path, place, "half a surrogate pair, which is not text")
    return text.strip()


def _flatten(value: Any, fields: tuple[str, ...]) -> str | None:
    """The text in a JSON value: strings as they are, lists line by line, objects by their field."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [_flatten(item, (*fields, *TEXT_FIELDS)) for item in value]
        lines = [part for part in parts if part]
        return "\n".join(lines) if lines else None
    if isinstance(value, dict):
        for field in fields:
            if value.get(field) is not None:
                return _flatten(value[field], fields)
    return None
