"""Ray Data: row tables built by tasks, and rows streamed to the training ranks in exact order.

The only file of the package's row side that knows ray. The dataset that ranks iterate is one of
*slot blocks*: block b holds K optimizer steps' rows of rank b mod world_size. With equal blocks,
preserved order and no locality, the splitter deals them round-robin, so every rank meets its own
rows in order; every batch carries its row ids and the trainer checks them all the same.
"""

import json
import logging
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data import DataIterator, ExecutionOptions

from glm_dist.data.order import RowOrder, RowSchedule
from glm_dist.data.row_table import PACKER_VERSION, RowTable, finish_table, write_part
from glm_dist.data.rows import FILL_ROW_ID, RowBuilder, Rows, RowSettings
from glm_dist.data.samples import build_row_builder
from glm_dist.data.shards import TokenDataset
from glm_dist.objective import ObjectiveSettings

logger = logging.getLogger(__name__)

BLOCK_BYTES = 2 << 20
"""1 to 8 MiB keeps latency and overhead low (blocks/s is what limits, not bytes)."""
BLOCK_ROWS = 256
"""A run waits for its first block; short rows would be many."""
BYTES_PER_TOKEN = 26


@dataclass(frozen=True)
class RowSource:
    """What a task needs to build rows; a few strings and numbers, so it travels in every task."""

    dataset_folder: str
    fingerprint: str
    tables_folder: str
    rows: RowSettings
    objective: ObjectiveSettings
    seed: int

    def __hash__(self) -> int:
        """By what has a hash: settings hold what has none, and equality looks at those too."""
        return hash((self.dataset_folder, self.fingerprint, self.tables_folder, self.seed))

    def key(self, epoch: int) -> dict[str, Any]:
        """Everything an epoch's row table is a function of."""
        return {
            "dataset": self.fingerprint,
            "rows": self.rows.told(),
            "objective": self.objective.model_dump(mode="json"),
            "packer": PACKER_VERSION,
            "seed": self.seed,
            "epoch": epoch,
        }

    def table_folder(self, epoch: int) -> Path:
        """Where an epoch's table lies."""
        return Path(self.tables_folder) / f"epoch-{epoch:05d}"


@lru_cache(maxsize=4)
def open_builder(source: RowSource) -> RowBuilder:
    """The builder of the train split, opened once per process."""
    dataset = TokenDataset.open(source.dataset_folder)
    return build_row_builder(dataset, "train", source.rows, source.objective, source.seed)


@lru_cache(maxsize=4)
def open_order(source: RowSource, num_epochs: int) -> RowOrder:
    """The order over the first `num_epochs` tables, opened once per process."""
    tables = [RowTable(source.table_folder(epoch)) for epoch in range(num_epochs)]
    return RowOrder(tables, source.seed)


def build_order(source: RowSource, num_rows: int) -> RowOrder:
    """Build, by tasks, the epochs' row tables that `num_rows` rows need; finished ones are kept."""
    quiet_ray_data()
    built = 0
    epoch = 0
    while built < num_rows:
        table = _existing_table(source, epoch) or _build_table(source, epoch)
        built += table.num_rows
        epoch += 1
    open_order.cache_clear()
    return open_order(source, epoch)


def _existing_table(source: RowSource, epoch: int) -> RowTable | None:
    folder = source.table_folder(epoch)
    if not (folder / "table.json").exists():
        return None
    table = RowTable(folder)
    return table if table.index["key"] == source.key(epoch) else None


def _build_table(source: RowSource, epoch: int) -> RowTable:
    shards = list(open_builder(source).dataset.shards("train"))
    slots = ray.data.range(len(shards), override_num_blocks=len(shards))
    parts = slots.map_batches(
        partial(_pack_shards, source=source, epoch=epoch),
        batch_size=None,
    ).take_all()
    entries = sorted((json.loads(part["entry"]) for part in parts), key=lambda part: part["file"])
    return finish_table(source.table_folder(epoch), source.key(epoch), entries)


def _pack_shards(batch: Rows, source: RowSource, epoch: int) -> dict[str, list[str]]:
    """Pack the named shards' documents, shuffled by a key of the epoch; write one part a shard."""
    builder, folder = open_builder(source), source.table_folder(epoch)
    return {
        "entry": [
            json.dumps(write_part(folder, number, builder.pack_shard(epoch, number)))
            for number in batch["id"].tolist()
        ]
    }


@dataclass(frozen=True)
class RowPlan:
    """The blocks an attempt streams, from where it resumes to the run's last step."""

    source: RowSource
    schedule: RowSchedule
    num_epochs: int
    num_steps: int

    @property
    def steps_per_block(self) -> int:
        """Steps in a block: enough for BLOCK_BYTES or BLOCK_ROWS, one at least."""
        token_bytes = BYTES_PER_TOKEN + 4 * open_builder(self.source).num_shares
        row_bytes = self.source.rows.sequence_length * token_bytes
        rows = min(BLOCK_BYTES // row_bytes, BLOCK_ROWS)
        return max(1, min(self.num_steps, rows // self.schedule.rows_per_rank))

    @property
    def num_blocks(self) -> int:
        """Blocks over all ranks."""
        return -(-self.num_steps // self.steps_per_block) * self.schedule.world_size

    def block_rows(self, block: int) -> np.ndarray:
        """Row ids of a block; steps past the end are fill rows."""
        chunk, rank = divmod(block, self.schedule.world_size)
        first = chunk * self.steps_per_block
        fill = np.full(self.schedule.rows_per_rank, FILL_ROW_ID)
        return np.concatenate(
            [
                self.schedule.rank_rows(step, rank) if step < self.num_steps else fill
                for step in range(first, first + self.steps_per_block)
            ]
        )

    def build_block(self, batch: Rows) -> Rows:
        """The finished rows of the blocks numbered in `batch` (a Ray Data map)."""
        order = open_order(self.source, self.num_epochs)
        row_ids = np.concatenate([self.block_rows(int(block)) for block in batch["id"]])
        contents = order.pieces(row_ids[row_ids >= 0])
        return open_builder(self.source).build(row_ids, contents)

    def streams(self) -> list[DataIterator]:
        """Each rank's own blocks in order; every rank has to read its stream.

        One process on this node deals them; it starts at once, and ends with `end_streams`.
        """
        quiet_ray_data()
        slots = ray.data.range(self.num_blocks, override_num_blocks=self.num_blocks)
        blocks = slots.map_batches(self.build_block, batch_size=None)
        blocks.context.execution_options = ExecutionOptions(preserve_order=True)
        return blocks.streaming_split(self.schedule.world_size, equal=True)


def end_streams(streams: list[DataIterator]) -> None:
    """End what deals these streams, with its tasks; whoever still reads them meets an error."""
    ray.kill(streams[0]._coord_actor)  # type: ignore[attr-defined]


def quiet_ray_data() -> None:
    """No progress bars or per-run chatter; and a slow consumer is not a hang."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)
