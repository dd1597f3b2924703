"""A few real steps in this process: what a plan's hours and a bare loop's rows come from."""

import time
from collections.abc import Iterator

import numpy as np
import torch

from glm_dist.data.rows import Rows
from glm_dist.data.samples import build_row_builder
from glm_dist.data.shards import TokenDataset
from glm_dist.engine import EngineSettings, build_engine
from glm_dist.engine.device import choose_device
from glm_dist.metrics.memory import available_bytes
from glm_dist.model import build_model
from glm_dist.model.tuning import apply_tuning
from glm_dist.train.settings import PretrainSettings
from glm_dist.train.stream import StepRows

PROBE_STEPS = 20
PROBE_SECONDS = 60
FEWEST_STEPS = 2


def packed_steps(
    settings: PretrainSettings, dataset: TokenDataset, num_steps: int, rows_per_step: int
) -> Iterator[list[Rows]]:
    """Micro-batches of `num_steps` steps, packed from the documents in their own order."""
    builder = build_row_builder(dataset, "train", settings.rows, settings.objective, settings.seed)
    num_rows, size = num_steps * rows_per_step, settings.batch.micro_batch_size
    documents: list[int] = []
    needed = 2 * num_rows * settings.rows.sequence_length
    while needed > 0:
        documents.append(len(documents) % len(builder.lengths))
        needed -= int(builder.lengths[documents[-1]])
    packed = builder.packer(0).pack(documents, builder.lengths[documents].tolist())
    for start in range(0, num_rows, rows_per_step):
        yield [
            builder.build(
                np.arange(first, first + size),
                ((0, pieces) for pieces in packed[first : first + size]),
            )
            for first in range(start, start + rows_per_step, size)
        ]


def probe_steps(settings: PretrainSettings, dataset: TokenDataset) -> list[float]:
    """Wall times of steps with one rank's share of the rows, on as many threads as a worker has.

    The engine is the plain torch one, so communication between ranks is not in them. Where steps
    take long there are fewer, so that a plan stays a matter of a minute or two.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(settings.workers.cpus_per_worker)))
    plain = EngineSettings(backend="torch", dtype=settings.engine.dtype)
    engine = build_engine(lambda: apply_tuning(build_model(settings.model), settings.tuning), plain)
    seconds: list[float] = []
    for micro_batches in packed_steps(settings, dataset, PROBE_STEPS, settings.rows_per_rank):
        start = time.perf_counter()
        rows = StepRows(micro_batches)
        scale = 1 / max(1.0, float(rows.mode_counts.sum()))
        for number, (batch, _) in enumerate(rows.batches(engine.device), start=1):
            engine.backward(batch, scale, number == len(micro_batches))
        health = engine.prepare()
        if bool(health.is_finite):
            engine.apply(settings.schedule.peak_learning_rate)
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > PROBE_SECONDS and len(seconds) >= FEWEST_STEPS:
            break
    torch.set_num_threads(before)
    return seconds


def free_bytes() -> int:
    """What this process could still take, on the device it would train on."""
    return available_bytes(choose_device())
