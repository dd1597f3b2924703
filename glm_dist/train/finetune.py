"""Fine-tuning: a task's examples, a model to begin with, and the run that trains one on the other.

What differs from pretraining is decided here, before anything is launched: the dataset is made of
examples, the model is the one begun with, and epochs become steps. Then it is a run like any other.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glm_dist.config import output_path
from glm_dist.data.order import Permutation
from glm_dist.data.samples import build_row_builder
from glm_dist.data.shards import TokenDataset
from glm_dist.engine.folders import model_folder, read_model_config
from glm_dist.errors import ConfigError, DataError
from glm_dist.model import ModelSettings
from glm_dist.tasks import TASKS, Binding, Task, TaskSettings, build_task
from glm_dist.tasks.dataset import build_dataset, check_examples, open_replay
from glm_dist.tasks.examples import Example, cut, read_examples
from glm_dist.tasks.mixture import NAME, MixtureSettings, named
from glm_dist.tokenizer import Tokenizer
from glm_dist.train.finetune_settings import FinetuneSettings
from glm_dist.train.settings import PretrainSettings

LONGEST_LOG_INTERVAL = 20
FIXED_SEED = 0
"""Of what is drawn to be used at all, and of a test part that is cut from train: runs that differ
in their seed are scored on the same examples."""


@dataclass(frozen=True)
class Prepared:
    """A fine-tuning run that is ready to be launched."""

    settings: FinetuneSettings
    task: Task[Any]
    dataset: TokenDataset
    splits: Mapping[str, Sequence[Example]]
    """Under train, validation and test."""
    steps_per_epoch: float
    """Mean over the epochs of the run."""

    @property
    def scored(self) -> str:
        """The split to score: test, or without one what the model was chosen by."""
        return "test" if self.splits["test"] else "validation"


def prepare_finetuning(
    settings: FinetuneSettings,
    tokenizer: Tokenizer | None = None,
    splits: Mapping[str, Sequence[Example]] | None = None,
) -> Prepared:
    """Read and check the examples, write their dataset, and settle what follows from both.

    Args:
        settings: as the user gave them.
        tokenizer: of a model that begins with random weights; else that of `init_from` is taken.
        splits: examples as `read_splits` gives them, where they are not as it would.

    Raises:
        ConfigError: when model, rows and task do not fit.
        DataError: for what is wrong with the examples, with file and line.
    """
    splits = splits or read_splits(settings)
    settings = _with_cap(settings, splits)
    task_settings = TASKS[settings.task.kind].complete(settings.task, splits["train"])
    base = _base_settings(settings)
    tokenizer = tokenizer or Tokenizer.load(_init_folder(settings))
    model = base.with_vocab_size(tokenizer.vocab_size) if settings.init_from is None else base
    binding = Binding(
        tokenizer, settings.rows.sequence_length, settings.objective, model.pools_first
    )
    task = build_task(task_settings, binding)
    check_examples(task, splits)
    dataset = build_dataset(
        settings.run_path / "data",
        task,
        splits,
        settings.seed,
        *_replay(settings, task),
    )
    settled = _settle(settings, task, model, dataset)
    steps = epoch_steps(settings, dataset, max(1, math.ceil(settings.epochs)))
    return Prepared(settled, task, dataset, splits, sum(steps) / len(steps))


def open_task(settings: FinetuneSettings) -> tuple[Task[Any], dict[str, list[Example]]]:
    """The task with what its training examples decide, not bound to a tokenizer; its examples.

    Raises:
        DataError: when there is nothing to learn from.
    """
    splits = read_splits(settings)
    return build_task(TASKS[settings.task.kind].complete(settings.task, splits["train"])), splits


def read_splits(settings: FinetuneSettings) -> dict[str, list[Example]]:
    """Examples under train, validation and test; what is not given is cut from train.

    Raises:
        DataError: when there is nothing to learn from.
    """
    task = settings.task
    if not isinstance(task, MixtureSettings):
        return _splits_of(task, "task", settings.seed)
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for name, part in task.tasks.items():
        for split, examples in _splits_of(part, f"task.tasks.{name}", settings.seed).items():
            splits[split] += [named(name, example) for example in examples]
    # Dev may be looked at in part, and is to hold something of each task then.
    dev = splits["validation"]
    order = Permutation(len(dev), FIXED_SEED)(np.arange(len(dev)))
    return {**splits, "validation": [dev[number] for number in order.tolist()]}


def _splits_of(task: TaskSettings, setting: str, seed: int) -> dict[str, list[Example]]:
    """The splits of one task."""
    train, dev, test = (
        read_examples(task, split, FIXED_SEED) for split in ("train", "dev", "test")
    )
    if not train:
        raise DataError(f"{setting}.train: names no examples; give a file, a folder or a glob")
    fields = task.kept_together
    if not test and task.test_share:
        train, test = cut(train, task.test_share, fields, "test", FIXED_SEED)
    if not dev:
        train, dev = cut(train, task.dev_share, fields, "dev", seed)
    kind = TASKS[task.kind]
    train, dev = (kind.choose(task, examples, seed) for examples in (train, dev))
    splits = {"train": train, "validation": dev, "test": test}
    return {name: kind.relate(task, examples) for name, examples in splits.items()}


def _with_cap(
    settings: FinetuneSettings, splits: Mapping[str, Sequence[Example]]
) -> FinetuneSettings:
    """With the share of each large task of a mixture that an epoch holds."""
    task = settings.task
    if not isinstance(task, MixtureSettings) or task.most_examples is None:
        return settings
    counts = Counter(example.fields[NAME] for example in splits["train"])
    shares = {
        name: task.most_examples / count
        for name, count in counts.items()
        if count > task.most_examples
    }
    rows = settings.rows.model_copy(update={"source_shares": shares})
    return settings.model_copy(update={"rows": rows})


def _base_settings(settings: FinetuneSettings) -> ModelSettings:
    """Shape of the model: that of the one begun with, else as the settings say."""
    if settings.init_from is None:
        return settings.model
    return read_model_config(_init_folder(settings))[0]


def _init_folder(settings: FinetuneSettings) -> Any:
    assert settings.init_from is not None, "a run from random weights is given a tokenizer"
    return model_folder(output_path(settings.init_from))


def _replay(settings: FinetuneSettings, task: Task[Any]) -> tuple[Any, float]:
    if settings.replay.dataset is None:
        return None, 0.0
    if task.head.is_classifier:
        raise ConfigError(
            "replay.dataset: pretraining text has no labels, and this task's head scores nothing "
            "else; take it out, or classify by cloze"
        )
    folder = output_path(settings.replay.dataset)
    builder = open_replay(settings.replay, task, settings.rows, settings.seed, folder)
    return builder, settings.replay.share


def _settle(
    settings: FinetuneSettings, task: Task[Any], model: ModelSettings, dataset: TokenDataset
) -> FinetuneSettings:
    """The settings with the model, and with steps for epochs."""
    shape: dict[str, Any] = {**model.model_dump(), "head": task.head.model_dump()}
    if settings.dropout is not None:
        names = ("embedding_dropout", "attention_dropout", "hidden_dropout")
        shape |= dict.fromkeys(names, settings.dropout)
    values = {
        **settings.model_dump(exclude_unset=True),
        "task": task.settings.model_dump(),
        "dataset": str(dataset.folder),
        "model": shape,
        **_rhythm(settings, dataset),
    }
    return FinetuneSettings(**values)


def _rhythm(settings: FinetuneSettings, dataset: TokenDataset) -> dict[str, Any]:
    """Duration, evaluations, checkpoints and log lines, in steps."""
    steps = epoch_steps(settings, dataset, max(1, math.ceil(settings.epochs)))
    duration = settings.duration.model_dump()
    if "duration" not in settings.model_fields_set:
        whole = math.floor(settings.epochs)
        rest = (settings.epochs - whole) * steps[-1]
        duration = {"num_steps": max(1, round(sum(steps[:whole]) + rest))}
    every = settings.evaluation.every_steps
    if "every_steps" not in settings.evaluation.model_fields_set:
        # Rounded up, so that the last one is that of the end.
        every = math.ceil(sum(steps) / max(1, round(len(steps) * settings.evaluations_per_epoch)))
    save_every = settings.checkpoints.every_steps
    if "every_steps" not in settings.checkpoints.model_fields_set:
        save_every = every
    log_every = settings.log_every_steps
    if "log_every_steps" not in settings.model_fields_set:
        log_every = max(n for n in range(1, LONGEST_LOG_INTERVAL + 1) if save_every % n == 0)
    return {
        "duration": duration,
        "evaluation": {**settings.evaluation.model_dump(), "every_steps": every},
        "checkpoints": {**settings.checkpoints.model_dump(), "every_steps": save_every},
        "log_every_steps": log_every,
    }


def epoch_steps(
    settings: PretrainSettings, dataset: TokenDataset, num_epochs: int
) -> Sequence[int]:
    """Steps of each of the first epochs; a batch that two epochs share counts to the later one."""
    builder = build_row_builder(dataset, "train", settings.rows, settings.objective, settings.seed)
    shards = range(len(dataset.shards("train")))
    ends, rows = [0], 0
    for epoch in range(num_epochs):
        rows += sum(len(builder.pack_shard(epoch, number)) for number in shards)
        ends.append(max(ends[-1], rows // settings.batch.global_batch_size))
    ends[1] = max(1, ends[1])
    return [end - start for start, end in zip(ends, ends[1:], strict=False)]
