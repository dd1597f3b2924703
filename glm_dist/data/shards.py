"""Token shards on disk: Arrow IPC files with one row a document, and the manifest over them.

A dataset without a manifest does not exist. The files open with plain pyarrow; tokens are read as
views of a memory map.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from glm_dist.errors import DataError
from glm_dist.tokenizer import Tokenizer

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
DOCUMENTS_PER_BATCH = 4096
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Document:
    """One document as it goes into a shard."""

    tokens: np.ndarray
    source: str
    language: str
    document_id: str


def token_type(vocab_size: int) -> pa.DataType:
    """The smallest unsigned type that holds every id of the vocabulary."""
    return pa.uint16() if vocab_size <= 1 << 16 else pa.uint32()


def write_shard(path: Path, documents: Sequence[Document], vocab_size: int) -> dict[str, Any]:
    """Write one shard atomically; return its entry for the manifest."""
    tokens = token_type(vocab_size)
    schema = pa.schema(
        [
            ("tokens", pa.list_(tokens)),
            ("source", pa.string()),
            ("language", pa.string()),
            ("document_id", pa.string()),
        ]
    )
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for first in range(0, len(documents), DOCUMENTS_PER_BATCH):
            writer.write_batch(_batch(documents[first : first + DOCUMENTS_PER_BATCH], schema))
    os.replace(temporary, path)
    return {
        "file": path.name,
        "documents": len(documents),
        "tokens": sum(len(document.tokens) for document in documents),
        "bytes": path.stat().st_size,
        "sha256": hash_file(path),
    }


def _batch(documents: Sequence[Document], schema: pa.Schema) -> pa.RecordBatch:
    offsets = np.cumsum([0, *(len(document.tokens) for document in documents)], dtype=np.int32)
    flat = np.concatenate([document.tokens for document in documents])
    values = pa.array(flat.astype(schema.field("tokens").type.value_type.to_pandas_dtype()))
    columns = [
        pa.ListArray.from_arrays(pa.array(offsets), values),
        *(
            pa.array([getattr(document, name) for document in documents], pa.string())
            for name in ("source", "language", "document_id")
        ),
    ]
    return pa.record_batch(columns, schema=schema)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest last and atomically; from then on the dataset exists."""
    temporary = folder / f"manifest.tmp-{os.getpid()}"
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, folder / MANIFEST)


@dataclass(frozen=True)
class Shard:
    """One shard's place among the documents of its split."""

    file: str
    first_document: int
    num_documents: int


class TokenDataset:
    """A dataset opened for reading; cheap to open, files are mapped when first used."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._batches: dict[str, list[pa.RecordBatch]] = {}

    @classmethod
    def open(cls, folder: str | Path) -> "TokenDataset":
        """Read the manifest and check that every shard is there in its size.

        Raises:
            DataError: naming the folder or shard, what is wrong and what to do.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(
                f"{folder}: holds no dataset (no {MANIFEST}); run jobs/prepare_data.py with "
                f"output={folder}"
            ) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / MANIFEST}: cannot be read ({error})") from None
        if manifest.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"{folder}: its schema version is {manifest.get('schema_version')}, this release "
                f"reads {SCHEMA_VERSION}; prepare the data again"
            )
        dataset = cls(folder, manifest)
        dataset._check_sizes()
        return dataset

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return TokenDataset.open, (self.folder,)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the canonical manifest: equal for equal data."""
        text = json.dumps(self.manifest, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer the shards were made with.

        Raises:
            DataError: when the file in the folder is another one.
        """
        tokenizer = Tokenizer.load(self.folder)
        expected = self.manifest["tokenizer"]["sha256"]
        if tokenizer.sha256 != expected:
            raise DataError(
                f"{self.folder}: {tokenizer.FILE} is not the one these shards were made with (its "
                f"SHA-256 is {tokenizer.sha256[:12]}…, the manifest says {expected[:12]}…); put "
                "the right one back or prepare the data again"
            )
        return tokenizer

    @property
    def languages(self) -> list[str]:
        """Languages of the documents, sorted."""
        return sorted(self.manifest["languages"])

    def verify(self) -> None:
        """Hash every shard.

        Raises:
            DataError: naming each shard whose content is not what was written.
        """
        entries = [entry for split in SPLITS for entry in self.manifest["splits"][split]]
        damaged = [
            entry["file"]
            for entry in entries
            if hash_file(self.folder / entry["file"]) != entry["sha256"]
        ]
        if damaged:
            raise DataError(
                f"{self.folder}: damaged shards, their SHA-256 differs from the manifest: "
                f"{', '.join(damaged)}; copy them again, or delete the folder and prepare again"
            )

    def shards(self, split: str) -> list[Shard]:
        """The shards of a split, in document order."""
        shards, first = [], 0
        for entry in self.manifest["splits"][split]:
            shards.append(Shard(entry["file"], first, entry["documents"]))
            first += entry["documents"]
        return shards

    def num_documents(self, split: str) -> int:
        """Documents of a split."""
        return sum(entry["documents"] for entry in self.manifest["splits"][split])

    def num_tokens(self, split: str) -> int:
        """Tokens of a split."""
        return sum(entry["tokens"] for entry in self.manifest["splits"][split])

    def lengths(self, split: str) -> np.ndarray:
        """Tokens of every document of a split, int64."""
        lengths = [
            np.diff(batch.column("tokens").offsets.to_numpy())
            for shard in self.shards(split)
            for batch in self._open_shard(shard.file)
        ]
        return np.concatenate([np.zeros(0, np.int64), *lengths]).astype(np.int64)

    def tokens(self, split: str, document: int, start: int = 0, length: int = -1) -> np.ndarray:
        """A view of `length` tokens of a document from `start` on; -1 for all."""
        batch, row = self._locate(split, document)
        column = batch.column("tokens")
        first, last = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
        values = column.values.to_numpy(zero_copy_only=True)[first:last]
        return values[start : None if length < 0 else start + length]

    def row(self, split: str, document: int) -> pa.RecordBatch:
        """All columns of a document, as a batch of one row."""
        batch, row = self._locate(split, document)
        return batch.slice(row, 1)

    def language_of(self, split: str, document: int) -> str:
        """Language code of a document."""
        batch, row = self._locate(split, document)
        return batch.column("language")[row].as_py()

    @property
    def sources(self) -> list[str]:
        """Names of the sources, sorted."""
        return sorted(self.manifest.get("sources", {}))

    def sources_of_shard(self, split: str, number: int) -> list[str]:
        """Source name of each document of a shard, in document order."""
        batches = self._open_shard(self.manifest["splits"][split][number]["file"])
        return [name for batch in batches for name in batch.column("source").to_pylist()]

    def source_of(self, split: str, document: int) -> str:
        """Source name of a document."""
        batch, row = self._locate(split, document)
        return batch.column("source")[row].as_py()

    @cached_property
    def _first_documents(self) -> dict[str, np.ndarray]:
        return {
            split: np.array([shard.first_document for shard in self.shards(split)])
            for split in SPLITS
        }

    def _locate(self, split: str, document: int) -> tuple[pa.RecordBatch, int]:
        first_documents = self._first_documents[split]
        number = int(np.searchsorted(first_documents, document, side="right")) - 1
        entry = self.manifest["splits"][split][number]
        local = document - int(first_documents[number])
        batches = self._open_shard(entry["file"])
        return batches[local // DOCUMENTS_PER_BATCH], local % DOCUMENTS_PER_BATCH

    def _open_shard(self, file: str) -> list[pa.RecordBatch]:
        if file not in self._batches:
            try:
                reader = pa.ipc.open_file(pa.memory_map(str(self.folder / file)))
                batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            except (OSError, pa.ArrowInvalid) as error:
                raise DataError(
                    f"{self.folder / file}: cannot be read as a shard ({error}); copy it again"
                ) from None
            self._batches[file] = batches
        return self._batches[file]

    def _check_sizes(self) -> None:
        problems = []
        for split in SPLITS:
            for entry in self.manifest["splits"][split]:
                path = self.folder / entry["file"]
                size = path.stat().st_size if path.exists() else None
                if size != entry["bytes"]:
                    found = "is missing" if size is None else f"has {size:,} bytes"
                    problems.append(f"{path} {found}, the manifest says {entry['bytes']:,} bytes")
        if problems:
            raise DataError("\n".join([*problems, "copy the shards again, or prepare again"]))
