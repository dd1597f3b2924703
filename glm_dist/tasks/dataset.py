"""A task's examples as a dataset of finished samples: checked, laid out, written with a manifest.

It stands apart because from here on fine-tuning is training like any other: what a task is does not
matter to shards, rows, order and resume.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from glm_dist.data.order import Permutation
from glm_dist.data.row_table import Piece
from glm_dist.data.rows import RowBuilder, RowSettings
from glm_dist.data.samples import KIND, Compared, SampleDocument, write_samples
from glm_dist.data.shards import (
    MANIFEST,
    SCHEMA_VERSION,
    SPLITS,
    TokenDataset,
    write_manifest,
)
from glm_dist.errors import ConfigError, DataError
from glm_dist.objective import Mode
from glm_dist.tasks.examples import Example, raise_problems
from glm_dist.tasks.settings import ReplaySettings
from glm_dist.tasks.task import Task, TaskSample

SAMPLES_PER_SHARD = 8192
LAYOUT_VERSION = 1
"""Part of every dataset's key; raised when the same input is laid out otherwise."""


def check_examples(
    task: Task[Any], splits: Mapping[str, Sequence[Example]], *, is_labelled: bool = True
) -> None:
    """Refuse examples that cannot be learnt or scored.

    Raises:
        DataError: naming file, line and remedy of each, the first of many.
    """
    raise_problems(
        [
            f"{example.place}: {problem}"
            for examples in splits.values()
            for example in examples
            for problem in task.problems(example, is_labelled=is_labelled)
        ]
    )


def build_dataset(
    folder: Path,
    task: Task[Any],
    splits: Mapping[str, Sequence[Example]],
    seed: int,
    replay: RowBuilder | None = None,
    replay_share: float = 0.0,
) -> TokenDataset:
    """Write the dataset of a task, or open the one that is there when it is the same.

    Args:
        folder: where it lies.
        task: bound to the tokenizer.
        splits: examples under `train` and `validation`.
        seed: of what is drawn: repeats of rare labels, pieces of pretraining text.
        replay: builder of pretraining text that is mixed in.
        replay_share: its share of the training samples.
    """
    key = _key(task, splits, seed, replay, replay_share)
    if (folder / MANIFEST).exists():
        found = TokenDataset.open(folder)
        if found.manifest.get("key") == key:
            return found
        (folder / MANIFEST).unlink()
    folder.mkdir(parents=True, exist_ok=True)
    times = _times(task, splits["train"], seed)
    documents = {
        "train": [
            document
            for number, example in enumerate(splits["train"])
            for document in _documents(task, number, example, task.training_samples(example))
            for _ in range(times[number])
        ],
        "validation": [
            document
            for number, example in enumerate(splits["validation"])
            for document in _documents(task, number, example, task.dev_samples(example))
        ],
    }
    if replay is not None:
        wanted = round(len(documents["train"]) * replay_share / (1 - replay_share))
        documents["train"] += list(_replayed(replay, wanted))
    _write(folder, task, documents, key)
    return TokenDataset.open(folder)


def _documents(
    task: Task[Any], number: int, example: Example, samples: Sequence[TaskSample]
) -> Iterator[SampleDocument]:
    language = task.settings.language or example.language
    for one in samples:
        if len(one.sample.tokens) > task.binding.max_tokens:
            raise DataError(
                f"{example.place}: takes {len(one.sample.tokens)} tokens, a row holds "
                f"{task.binding.max_tokens}; raise rows.sequence_length or shorten it"
            )
        compared = replace(one.compared, example=number)
        yield SampleDocument(
            one.sample, one.mode, compared, task.source(example), language, example.place
        )


def _times(task: Task[Any], examples: Sequence[Example], seed: int) -> list[int]:
    """How often each example is laid out: once, or more where its label is rare."""
    return [
        int(wanted) + (random.Random(f"{seed},{number}").random() < wanted % 1)
        for number, wanted in enumerate(task.repeats(examples))
    ]


def _replayed(builder: RowBuilder, count: int) -> Iterator[SampleDocument]:
    """Infilled pieces of pretraining documents; none comes again before all have come."""
    lengths = builder.lengths
    order = Permutation(len(lengths), builder.seed)
    pieces = (
        (epoch, Piece(document, start, length))
        for epoch in range(1 + count)
        for document in order(np.arange(len(lengths))).tolist()
        for row in builder.packer(epoch).pack([document], [int(lengths[document])])
        for _, start, length in row
    )
    for number, (epoch, piece) in zip(range(count), pieces, strict=False):
        sample, mode = builder.sample(epoch, piece)
        language = builder.dataset.language_of("train", piece.document)
        name = f"{builder.dataset.folder.name} document {piece.document}"
        yield SampleDocument(sample, Mode(mode), Compared(number), "replay", language, name)


def _write(
    folder: Path, task: Task[Any], documents: Mapping[str, Sequence[SampleDocument]], key: str
) -> None:
    tokenizer = task.tokenizer
    tokenizer.save(folder)
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    counts: dict[str, Counter[str]] = {"sources": Counter(), "languages": Counter()}
    for split, all_documents in documents.items():
        for number in range(0, len(all_documents), SAMPLES_PER_SHARD):
            part = all_documents[number : number + SAMPLES_PER_SHARD]
            path = folder / f"{split}-{number // SAMPLES_PER_SHARD:05d}.arrow"
            splits[split].append(write_samples(path, part, tokenizer.vocab_size))
        for document in all_documents:
            counts["sources"][document.source] += len(document.sample.tokens)
            counts["languages"][document.language] += len(document.sample.tokens)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "key": key,
        "task": task.settings.model_dump(mode="json"),
        "tokenizer": {"sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size},
        "splits": splits,
        **{name: dict(sorted(counter.items())) for name, counter in counts.items()},
    }
    write_manifest(folder, manifest)


def _key(
    task: Task[Any],
    splits: Mapping[str, Sequence[Example]],
    seed: int,
    replay: RowBuilder | None,
    replay_share: float,
) -> str:
    """Hash of everything the dataset is a function of."""
    binding = task.binding
    parts = [
        LAYOUT_VERSION,
        task.settings.model_dump(mode="json"),
        binding.tokenizer.sha256,
        binding.max_tokens,
        binding.objective.model_dump(mode="json"),
        binding.pools_first,
        seed,
        None if replay is None else [replay.dataset.fingerprint, replay_share],
        {name: [example.fields for example in examples] for name, examples in splits.items()},
    ]
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def open_replay(
    settings: ReplaySettings, task: Task[Any], rows: RowSettings, seed: int, folder: Path
) -> RowBuilder | None:
    """The builder of the pretraining text to be mixed in, None where there is none.

    Raises:
        ConfigError: when it was made with another tokenizer, or the share is none.
    """
    if settings.dataset is None:
        return None
    dataset = TokenDataset.open(folder)
    if not 0 < settings.share < 1:
        raise ConfigError(f"replay.share: got {settings.share}; a share lies between 0 and 1")
    if dataset.tokenizer.sha256 != task.tokenizer.sha256:
        raise ConfigError(
            f"replay.dataset: {folder} was made with another tokenizer than the model's; prepare "
            "it with tokenizer_path set to the model's folder"
        )
    return RowBuilder(dataset, "train", rows, task.binding.objective, seed)
