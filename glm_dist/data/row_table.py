"""Row tables: which pieces of which documents stand together in one training row of an epoch.

A table is packed ahead, a part a shard, by the pieces' length *after* infilling. It stands apart
from Ray and from the trainer because the promise of exact resume rests on its being a pure function
of dataset, settings, seed and epoch.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from glm_dist.errors import DataError

PACKER_VERSION = 1  # part of every table's key; raise it when the same input packs differently
ROWS_PER_RECORD_BATCH = 4096
SHRINK_TRIES = 8


class Piece(NamedTuple):
    """A run of `length` tokens of a document; `document` counts over the split's shards."""

    document: int
    start: int
    length: int


@dataclass(frozen=True)
class Packer:
    """Next-fit: a row is filled with the next piece that fits it, documents cut where rows end.

    `infilled_length(document, start, length)` draws what a piece grows to, keyed by the piece.
    """

    sequence_length: int
    min_piece_tokens: int
    infilled_length: Callable[[int, int, int], int]
    max_piece_tokens: Callable[[int, int], int] = lambda document, start: 1 << 62

    def pack(self, documents: Sequence[int], lengths: Sequence[int]) -> list[list[Piece]]:
        """Rows of pieces; every token of every document stands in exactly one piece."""
        rows: list[list[Piece]] = [[]]
        room = self.sequence_length
        for document, document_length in zip(documents, lengths, strict=True):
            start = 0
            while start < document_length:
                piece, used = self._fit(document, start, document_length - start, room)
                if piece is None:
                    if not rows[-1]:
                        raise DataError(
                            f"sequence_length {self.sequence_length} is too short for any sample; "
                            "use at least 16"
                        )
                    rows.append([])
                    room = self.sequence_length
                    continue
                rows[-1].append(piece)
                room -= used
                start += piece.length
        return rows if rows[-1] else rows[:-1]

    def _fit(self, document: int, start: int, left: int, room: int) -> tuple[Piece | None, int]:
        """The longest piece from `start` that is found to fit `room`, and the room it takes."""
        length = min(left, room, self.max_piece_tokens(document, start))
        shortest = min(left, self.min_piece_tokens)
        for _ in range(SHRINK_TRIES):
            if length < shortest or length < 1:
                break
            used = self.infilled_length(document, start, length)
            if used <= room:
                return Piece(document, start, length), used
            length = min(length - 1, length * room // used)
        return None, 0


class RowTable:
    """One epoch's rows on disk: an Arrow file a shard of the dataset, and `table.json`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._readers: dict[int, pa.RecordBatchFileReader] = {}

    def __getstate__(self) -> dict[str, Path]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    @cached_property
    def index(self) -> dict:
        """What `finish_table` wrote: key, parts, counts, hash."""
        path = self.folder / "table.json"
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: no readable row table ({error}); delete its folder to have it made again"
            ) from None

    @property
    def num_rows(self) -> int:
        """Rows of this epoch."""
        return self.index["num_rows"]

    @property
    def sha256(self) -> str:
        """Hash over the key and every part; stands in checkpoints."""
        return self.index["sha256"]

    @cached_property
    def _first_rows(self) -> np.ndarray:
        return np.cumsum([0, *(part["num_rows"] for part in self.index["parts"])])

    def pieces(self, entry: int) -> list[Piece]:
        """The pieces of table entry `entry`, in their order within the row."""
        part = int(np.searchsorted(self._first_rows, entry, side="right")) - 1
        local = int(entry - self._first_rows[part])
        batch = self._reader(part).get_batch(local // ROWS_PER_RECORD_BATCH)
        position = local % ROWS_PER_RECORD_BATCH
        columns = [batch.column(i)[position].values.to_numpy() for i in range(3)]
        return [Piece(*map(int, values)) for values in zip(*columns, strict=True)]

    def _reader(self, part: int) -> pa.RecordBatchFileReader:
        if part not in self._readers:
            source = pa.memory_map(str(self.folder / self.index["parts"][part]["file"]))
            self._readers[part] = pa.ipc.open_file(source)
        return self._readers[part]


def write_part(folder: Path, number: int, rows: list[list[Piece]]) -> dict:
    """Write the rows of one shard; return the part's entry for `finish_table`."""
    path = folder / f"part-{number:05d}.arrow"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        for first in range(0, len(rows), ROWS_PER_RECORD_BATCH):
            writer.write_batch(_record_batch(rows[first : first + ROWS_PER_RECORD_BATCH]))
    digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    os.replace(temporary, path)
    return {"file": path.name, "num_rows": len(rows), "sha256": digest}


_SCHEMA = pa.schema(
    [
        ("documents", pa.list_(pa.int64())),
        ("starts", pa.list_(pa.int32())),
        ("lengths", pa.list_(pa.int32())),
    ]
)


def _record_batch(rows: list[list[Piece]]) -> pa.RecordBatch:
    offsets = pa.array(np.cumsum([0, *map(len, rows)]), type=pa.int32())
    flat = np.array([piece for row in rows for piece in row], dtype=np.int64).reshape(-1, 3)
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(flat[:, i], type=field.type.value_type))
        for i, field in enumerate(_SCHEMA)
    ]
    return pa.record_batch(columns, schema=_SCHEMA)


def finish_table(folder: Path, key: dict, parts: list[dict]) -> RowTable:
    """Write `table.json` last and atomically: a table without it does not exist."""
    index = {"key": key, "parts": parts, "num_rows": sum(part["num_rows"] for part in parts)}
    index["sha256"] = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
    if not index["num_rows"]:
        raise DataError(f"{folder}: the dataset's train split holds no tokens; prepare more text")
    temporary = folder / f"table.tmp-{os.getpid()}"
    temporary.write_text(json.dumps(index, indent=1))
    os.replace(temporary, folder / "table.json")
    return RowTable(folder)
