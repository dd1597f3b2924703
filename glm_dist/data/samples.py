"""Shards of finished GLM samples, one a row, and the builder that lays them side by side.

Fine-tuning has its examples laid out once, so here a document is a whole sample: it is never cut
and nothing about it is drawn, while order, resume and row ids are those of pretraining.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from glm_dist.data.row_table import Packer, Piece
from glm_dist.data.rows import RowBuilder, RowSettings
from glm_dist.data.shards import DOCUMENTS_PER_BATCH, TokenDataset, hash_file, token_type
from glm_dist.objective import Mode, ObjectiveSettings, Sample

KIND = "samples"
"""Of a manifest under the key `kind`."""
NO_OPTION = -1


@dataclass(frozen=True)
class Compared:
    """Which answer to which example a sample holds, so that answers can be compared."""

    example: int
    """Number of the example in its split."""
    option: int = NO_OPTION
    """Number of the answer, where the model chooses among several."""
    gold: int = NO_OPTION
    """Number of the right one."""


@dataclass(frozen=True)
class SampleDocument:
    """A sample as it goes into a shard."""

    sample: Sample
    mode: Mode
    compared: Compared
    source: str
    language: str
    document_id: str


_ARRAYS = {
    "targets": pa.int32(),
    "loss_mask": pa.uint8(),
    "position_ids": pa.int32(),
    "block_position_ids": pa.int32(),
}
_NUMBERS = {
    "part_a_length": pa.int32(),
    "mode": pa.int8(),
    "example": pa.int64(),
    "option": pa.int32(),
    "gold": pa.int32(),
}
_TEXTS = ("source", "language", "document_id")


def write_samples(
    path: Path, documents: Sequence[SampleDocument], vocab_size: int
) -> dict[str, Any]:
    """Write one shard atomically; return its entry for the manifest."""
    kinds = dict(_ARRAYS)
    if documents[0].sample.targets.ndim == 2:
        kinds["targets"] = pa.float32()
    schema = pa.schema(
        [
            ("tokens", pa.list_(token_type(vocab_size))),
            *((name, pa.list_(kind)) for name, kind in kinds.items()),
            *_NUMBERS.items(),
            *((name, pa.string()) for name in _TEXTS),
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
        "tokens": sum(len(document.sample.tokens) for document in documents),
        "bytes": path.stat().st_size,
        "sha256": hash_file(path),
    }


def _batch(documents: Sequence[SampleDocument], schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for field in schema:
        if pa.types.is_list(field.type):
            arrays = [_stored(one.sample, field.name) for one in documents]
            offsets = pa.array(np.cumsum([0, *map(len, arrays)], dtype=np.int32))
            kind = field.type.value_type
            values = pa.array(np.concatenate(arrays).astype(kind.to_pandas_dtype()), kind)
            columns.append(pa.ListArray.from_arrays(offsets, values))
        else:
            columns.append(pa.array([_cell(one, field.name) for one in documents], field.type))
    return pa.record_batch(columns, schema=schema)


def _stored(sample: Sample, name: str) -> np.ndarray:
    """One of a sample's arrays; of shares of labels only those of the places that have some."""
    array = getattr(sample, name)
    return array if array.ndim == 1 else array[sample.loss_mask > 0].ravel()


def _cell(document: SampleDocument, name: str) -> Any:
    if name == "part_a_length":
        return document.sample.part_a_length
    if name == "mode":
        return int(document.mode)
    return getattr(document.compared if hasattr(document.compared, name) else document, name)


class SampleRowBuilder(RowBuilder):
    """Builds rows of whole samples, of which everything was decided when they were made."""

    @cached_property
    def num_shares(self) -> int:  # type: ignore[override]
        """Labels that a sample's places have shares of; 0 where each has the id of one."""
        row = self.dataset.row(self.split, 0)
        if not pa.types.is_floating(row.schema.field("targets").type.value_type):
            return 0
        num_places = row.column("loss_mask")[0].values.to_numpy().sum()
        return int(len(row.column("targets")[0]) // num_places)

    def packer(self, epoch: int) -> Packer:
        """A packer that never cuts."""
        return Packer(
            sequence_length=self.rows.sequence_length,
            min_piece_tokens=sys.maxsize,
            infilled_length=lambda document, start, length: length,
        )

    def sample(self, epoch: int, piece: Piece) -> tuple[Sample, int]:
        """The sample and its mode."""
        row = self.dataset.row(self.split, piece.document)
        names = ("tokens", *_ARRAYS)
        arrays = {name: row.column(name)[0].values.to_numpy() for name in names}
        if self.num_shares:
            shares, there = arrays["targets"], arrays["loss_mask"] > 0
            arrays["targets"] = np.zeros((len(there), self.num_shares), np.float32)
            arrays["targets"][there] = shares.reshape(-1, self.num_shares)
        length, mode = (row.column(name)[0].as_py() for name in ("part_a_length", "mode"))
        return Sample(**arrays, part_a_length=length), mode

    def compared(self, document: int) -> Compared:
        """Which answer to which example a document holds."""
        row = self.dataset.row(self.split, document)
        return Compared(*(row.column(name)[0].as_py() for name in ("example", "option", "gold")))


def build_row_builder(
    dataset: TokenDataset, split: str, rows: RowSettings, objective: ObjectiveSettings, seed: int
) -> RowBuilder:
    """The builder that a dataset's kind asks for."""
    is_samples = dataset.manifest.get("kind") == KIND
    builder = SampleRowBuilder if is_samples else RowBuilder
    return builder(dataset, split, rows, objective, seed)
