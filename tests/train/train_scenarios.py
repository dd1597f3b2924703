"""What the training tests run in one process or on several ranks; importable by spawned ranks."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from glm_dist.data.order import RowOrder, RowSchedule
from glm_dist.data.row_table import RowTable, finish_table, write_part
from glm_dist.data.rows import Rows, RowSettings
from glm_dist.data.samples import build_row_builder
from glm_dist.data.shards import SCHEMA_VERSION, Document, TokenDataset, write_manifest, write_shard
from glm_dist.engine import Engine, EngineSettings
from glm_dist.engine.storage import hash_file
from glm_dist.errors import StepFailedError
from glm_dist.metrics.sinks import SinkSettings, read_metrics
from glm_dist.model import ModelSettings
from glm_dist.tokenizer import Tokenizer, TokenizerSettings, train_tokenizer
from glm_dist.train import worker
from glm_dist.train.attempt import claim_run_folder, decide_attempt, read_attempts
from glm_dist.train.boundary import LocalBoundary
from glm_dist.train.initial import base_fingerprint
from glm_dist.train.settings import PretrainSettings
from glm_dist.train.state import Ending, TrainState
from glm_dist.train.worker import Job, run_rank

WORDS = "the list returns a number of items when the given value is not in a range".split()
NUM_TRAINING_DOCUMENTS = 250


class KilledError(RuntimeError):
    """A process that ends without saving."""


def make_dataset(folder: Path, tokenizer: Tokenizer | None = None) -> TokenDataset:
    """Three hundred short texts of seventeen words, tokenized."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=60)) + "." for _ in range(300)]
    tokenizer = tokenizer or train_tokenizer(texts, TokenizerSettings(vocab_size=320))
    tokenizer.save(folder)
    documents = [
        Document(tokenizer.encode(text), "words", "en", str(i)) for i, text in enumerate(texts)
    ]
    parts = {
        "train": documents[:NUM_TRAINING_DOCUMENTS],
        "validation": documents[NUM_TRAINING_DOCUMENTS:],
    }
    splits = {
        name: [write_shard(folder / f"{name}-00000.arrow", part, tokenizer.vocab_size)]
        for name, part in parts.items()
    }
    manifest = {"schema_version": SCHEMA_VERSION, "splits": splits, "languages": {"en": 1}}
    write_manifest(folder, {**manifest, "tokenizer": {"sha256": tokenizer.sha256}})
    return TokenDataset.open(folder)


def make_settings(dataset: TokenDataset, **changes: Any) -> PretrainSettings:
    """A run of twelve steps on one worker."""
    model = {"preset": None, "num_layers": 1, "hidden_size": 32, "num_heads": 2}
    model = {**model, "vocab_size": dataset.tokenizer.vocab_size, **changes.pop("model", {})}
    values = {
        "duration": {"num_steps": 12},
        "batch": {"global_batch_size": 8, "micro_batch_size": 4},
        "workers": {"num_workers": 1},
        "rows": RowSettings(sequence_length=64),
        "model": ModelSettings(**model),
        "engine": EngineSettings(backend="torch", dtype="float32"),
        "evaluation": {"every_steps": 6, "num_rows": 8},
        "checkpoints": {"every_steps": 4},
        "sinks": SinkSettings(tensorboard=False, wandb="off"),
        "log_every_steps": 1,
        **changes,
    }
    return PretrainSettings(**values)


class Runner:
    """Runs attempts of one run folder on the ranks of this process group."""

    def __init__(self, dataset: TokenDataset, settings: PretrainSettings, folder: Path) -> None:
        self.dataset, self.settings, self.folder = dataset, settings, folder
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.builder = build_row_builder(
            dataset, "train", settings.rows, settings.objective, settings.seed
        )
        if self.rank == 0:
            self._write_tables()
            claim_run_folder(folder, settings)
        self._barrier()
        tables = [RowTable(path) for path in sorted(folder.glob("table-*"))]
        self.order = RowOrder(tables, settings.seed)
        self.prints = {"dataset": dataset.fingerprint, "row order": self.order.sha256}
        self.prints |= base_fingerprint(settings)

    def batches(self, state: TrainState) -> Iterator[Rows]:
        """This rank's micro-batches from where the state stands."""
        batch = self.settings.batch
        schedule = RowSchedule(
            state.next_row, tuple(state.skipped), batch.global_batch_size, self.world_size
        )
        for step in range(self.settings.num_steps - state.step):
            rows = schedule.rank_rows(step, self.rank)
            for ids in np.split(rows, len(rows) // batch.micro_batch_size):
                yield self.builder.build(ids, self.order.pieces(ids))

    def run(self, break_at: int | None = None, stop_at: int | None = None) -> Ending:
        """One attempt; it may die before taking step `break_at` or be asked to stop there."""
        if self.rank == 0:
            decide_attempt(self.folder, self.settings, self.prints, self.world_size)
        self._barrier()
        attempt = read_attempts(self.folder)[-1]
        job = Job(self.settings, str(self.folder), str(self.dataset.folder), self.prints)
        boundary = LocalBoundary(iter(()), self.rank, self.world_size)
        boundary._batches = self._watched(attempt.train_state, boundary, break_at, stop_at)
        return run_rank(job, boundary, attempt)

    def losses(self) -> dict[int, float]:
        """Training loss by step."""
        lines = read_metrics(self.folder / "metrics.jsonl")
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    def weights_hash(self) -> str:
        """Of the finished model."""
        return hash_file(self.folder / "model" / "model.safetensors")

    def rows_seen(self) -> dict[int, list[int]]:
        """Global row ids by step, over all ranks and attempts; a step redone replaces itself."""
        seen: dict[int, dict[int, list[int]]] = {}
        for path in sorted(self.folder.glob("rows-*.jsonl")):
            for line in path.read_text().splitlines():
                step, rank, ids = json.loads(line)
                seen.setdefault(step, {})[rank] = ids
        return {step: [i for rank in sorted(seen[step]) for i in seen[step][rank]] for step in seen}

    def _watched(
        self,
        state: TrainState,
        boundary: LocalBoundary,
        break_at: int | None,
        stop_at: int | None,
    ) -> Iterator[Rows]:
        batch = self.settings.batch
        per_step = batch.global_batch_size // self.world_size // batch.micro_batch_size
        attempt = len(read_attempts(self.folder))
        with open(self.folder / f"rows-{attempt:03d}-{self.rank}.jsonl", "w") as ledger:
            first, ids = state.step, []
            for number, rows in enumerate(self.batches(state)):
                step = first + number // per_step
                if break_at is not None and step >= break_at:
                    raise KilledError("killed")
                boundary.stop = stop_at is not None and step >= stop_at - 1
                ids += rows["row_ids"].tolist()
                if (number + 1) % per_step == 0:
                    ledger.write(json.dumps([step, self.rank, ids]) + "\n")
                    ledger.flush()
                    ids = []
                yield rows

    def _write_tables(self) -> None:
        """As many epochs as the run needs, with its rewinds."""
        guard = self.settings.guard
        steps = self.settings.num_steps + guard.max_rewinds * guard.skip_steps
        needed = steps * self.settings.batch.global_batch_size
        epoch, lengths = 0, self.builder.lengths.tolist()
        while needed > 0:
            folder = self.folder / f"table-{epoch:05d}"
            rows = self.builder.packer(epoch).pack(range(len(lengths)), lengths)
            finish_table(folder, {}, [write_part(folder, 0, rows)])
            needed -= len(rows)
            epoch += 1

    def _barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def resume_everywhere(
    dataset_folder: str, folder: str, settings: PretrainSettings, steps: list[int]
) -> dict[str, Any]:
    """An undisturbed run, and runs resumed at each of `steps`: what each of them ended with.

    Returns, under "undisturbed" and each step: losses and the hash of the final weights.
    """
    dataset = TokenDataset.open(dataset_folder)
    whole = Runner(dataset, settings, Path(folder) / "undisturbed")
    whole.run()
    results: dict[str, Any] = {"undisturbed": (whole.losses(), whole.weights_hash())}
    for step in steps:
        runner = Runner(dataset, settings, Path(folder) / f"broken-{step}")
        try:
            runner.run(break_at=step)
        except KilledError:
            runner.run()
        results[str(step)] = (runner.losses(), runner.weights_hash())
    return results


def run_segment(
    dataset_folder: str, folder: str, settings: PretrainSettings, stop_at: int | None
) -> int:
    """One attempt up to `stop_at`, on whatever ranks there are; the step it ended at."""
    return (
        Runner(TokenDataset.open(dataset_folder), settings, Path(folder)).run(stop_at=stop_at).step
    )


def train_with_a_nap(
    dataset_folder: str, folder: str, settings: PretrainSettings, naps_at: int | None
) -> None:
    """Train; at micro-batch `naps_at` rank 1's loader sleeps for good."""
    runner = Runner(TokenDataset.open(dataset_folder), settings, Path(folder))
    batches = runner.batches

    def sleeping_batches(state: TrainState) -> Iterator[Rows]:
        for number, rows in enumerate(batches(state)):
            if number == naps_at and runner.rank == 1:
                time.sleep(1000)
            yield rows

    runner.batches = sleeping_batches  # type: ignore[method-assign]
    runner.run()


def train_with_a_slow_rank(dataset_folder: str, folder: str, settings: PretrainSettings) -> None:
    """Train; each forward pass of rank 1 takes some milliseconds more."""
    runner = Runner(TokenDataset.open(dataset_folder), settings, Path(folder))
    build = worker.build_engine

    def build_slow_engine(build_model: Callable[[], nn.Module], *options: Any) -> Engine:
        def build_slow_model() -> nn.Module:
            model = build_model()
            model.register_forward_pre_hook(lambda *_: time.sleep(0.03 * runner.rank))
            return model

        return build(build_slow_model, *options)

    worker.build_engine = build_slow_engine
    runner.run()


def train_with_a_flipped_bit(
    dataset_folder: str, folder: str, settings: PretrainSettings, flips_at: int | None
) -> str:
    """Train; before step `flips_at` one bit of one weight of rank 1 changes. What came of it."""
    runner = Runner(TokenDataset.open(dataset_folder), settings, Path(folder))
    weights: list[nn.Parameter] = []
    build = worker.build_engine

    def build_and_remember(build_model: Callable[[], nn.Module], *options: Any) -> Engine:
        def build_remembered() -> nn.Module:
            model = build_model()
            weights.extend(model.parameters())
            return model

        return build(build_remembered, *options)

    batches = runner.batches

    def flipping_batches(state: TrainState) -> Iterator[Rows]:
        for number, rows in enumerate(batches(state)):
            if flips_at is not None and number == 2 * flips_at and runner.rank == 1:
                weights[2].data.view(-1)[3:4].view(torch.int32).bitwise_xor_(1 << 9)
            yield rows

    worker.build_engine = build_and_remember
    runner.batches = flipping_batches  # type: ignore[method-assign]
    try:
        return runner.run().kind
    except StepFailedError as error:
        return str(error)
