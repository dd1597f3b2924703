"""A dataset answered by a pool of engines under Ray Data, part by part, each kept as it comes.

A part is a parquet file that is there whole or not at all. A run that is broken off answers the
missing parts alone; an engine that dies is started again by Ray, and its part given to another.
"""

import hashlib
import json
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch

from glm_dist.data.pipeline import quiet_ray_data
from glm_dist.errors import DataError, GlmDistError, ModelError
from glm_dist.evaluate.part_work import PartWork
from glm_dist.evaluate.pool_settings import PoolSettings

INDEX = "_parts.json"
"""Its first letter keeps it out of what parquet's readers see of the folder."""


class Parts:
    """The parts of one dataset's answers, in a folder.

    Args:
        folder: made if missing; the answers of one question to one model.
        rows: all that is asked; anything that can be pickled.
        told: what the answers depend on beside the rows, as JSON.
        pool: how many rows a part has, and who answers them.

    Raises:
        DataError: when the folder holds answers to something else.
    """

    def __init__(
        self, folder: Path, rows: Sequence[Any], told: dict[str, Any], pool: PoolSettings
    ) -> None:
        self.folder, self._rows, self._pool = folder, rows, pool
        digest = hashlib.sha256(pickle.dumps(list(rows))).hexdigest()
        size = pool.rows_per_part
        index = {**told, "num_rows": len(rows), "rows_per_part": size, "rows_sha256": digest}
        self._numbers = range(-(-len(rows) // size))
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder / INDEX, index)

    @property
    def missing(self) -> list[int]:
        """Numbers of the parts that are still to be answered."""
        return [number for number in self._numbers if not self._path(number).exists()]

    def answer(self, work: PartWork) -> Iterator[int]:
        """Answer what is missing; the number of rows of each part as it is written.

        Raises:
            ModelError: when an engine cannot answer.
        """
        missing = self.missing
        if not missing:
            return
        items = [
            {"number": number, "rows": pickle.dumps(self._part(number)), "path": str(path)}
            for number, path in ((each, self._path(each)) for each in missing)
        ]
        references: Any = _answer.remote(items, work, self._pool)
        for reference in references:
            number, error = ray.get(reference)
            if error:
                raise ModelError(error)
            yield len(self._part(number))

    def read(self) -> list[dict[str, Any]]:
        """All answers, in the order of the rows."""
        return [
            row for number in self._numbers for row in pq.read_table(self._path(number)).to_pylist()
        ]

    def _part(self, number: int) -> Sequence[Any]:
        size = self._pool.rows_per_part
        return self._rows[number * size : (number + 1) * size]

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"


@ray.remote(num_cpus=0)
def _answer(
    items: list[dict[str, Any]], work: PartWork, pool: PoolSettings
) -> Iterator[tuple[int, str]]:
    """Number and error of each part; a process of its own, whose terminal nobody reads."""
    quiet_ray_data()
    answered = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Engine,
        fn_constructor_args=(work, pool.num_threads),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(pool.num_engines, len(items))),
        num_cpus=pool.num_threads,
        num_gpus=pool.num_gpus or None,
    )
    for batch in answered.iter_batches(batch_size=1, prefetch_batches=0):
        yield int(batch["number"][0]), str(batch["error"][0])


class _Engine:
    """One engine of the pool, in a process of its own."""

    def __init__(self, work: PartWork, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._answer = work.open()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        error = ""
        try:
            answers = self._answer(pickle.loads(batch["rows"][0]))
            _write(Path(batch["path"][0]), answers)
        except GlmDistError as found:  # a mistake in what was asked; to try again is of no use
            error = str(found)
        return {"number": [batch["number"][0]], "error": [error]}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")
    os.replace(temporary, path)


def _claim(path: Path, index: dict[str, Any]) -> None:
    """Say in a new folder what its parts are, or find an old one to be of the same."""
    if not path.exists():
        path.write_text(json.dumps(index, indent=1, ensure_ascii=False), encoding="utf-8")
        return
    known = json.loads(path.read_text(encoding="utf-8"))
    names = [name for name in {**known, **index} if known.get(name) != index.get(name)]
    if names:
        raise DataError(
            f"{path.parent}: holds answers to something else ({', '.join(sorted(names))} differ); "
            "give another output, or remove it"
        )
