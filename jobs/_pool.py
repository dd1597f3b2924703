"""A dataset answered by a pool of engines, with its progress on the terminal."""

import time
from typing import TYPE_CHECKING, Any

from _ray import connect

if TYPE_CHECKING:
    from glm_dist.evaluate.part_work import PartWork
    from glm_dist.evaluate.pipeline import Parts
    from glm_dist.evaluate.pool_settings import PoolSettings


def answer_all(
    parts: "Parts", work: "PartWork", pool: "PoolSettings", num_rows: int
) -> list[dict[str, Any]]:
    """Answer the parts that are missing; all answers, in the order of the rows."""
    left = min(num_rows, len(parts.missing) * pool.rows_per_part)
    if left < num_rows:
        print(f"kept         {num_rows - left:,} of {num_rows:,} rows were answered before")
    if left:
        connect(num_cpus=pool.num_engines * pool.num_threads + 1)
    start, done = time.monotonic(), 0
    for count in parts.answer(work):
        done += count
        speed = done / (time.monotonic() - start)
        print(
            f"answered     {num_rows - left + done:,} of {num_rows:,} rows  {speed:,.1f} rows/s  "
            f"{max(0, left - done) / speed:,.0f} s left",
            flush=True,
        )
    return parts.read()
