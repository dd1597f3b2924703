"""What a model is asked when it is scored: its own task or a config's, and which examples.

It stands apart from the job so that this reads and refuses before anything is answered.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from glm_dist.config import Settings, load_config
from glm_dist.errors import ConfigError
from glm_dist.evaluate.pool_settings import PoolSettings
from glm_dist.tasks.settings import Columns, Files

if TYPE_CHECKING:
    from glm_dist.model import GLM
    from glm_dist.tasks import Task
    from glm_dist.tasks.examples import Example
    from glm_dist.tokenizer import Tokenizer


class EvaluateSettings(Settings):
    """Which model answers which examples."""

    model: str
    """A finished run or model folder; below GLM_DIST_HOME if relative. It carries its task where it
    was tuned for one."""
    base: str | None = None
    """Where the model beside an adapter lies, if it was moved."""
    task_config: str | None = None
    """Config of a task as jobs/finetune.py reads it, in place of the task that the model carries; a
    base model carries none."""
    part: str | None = None
    """Which task of a mixture; by default all of `task_config`'s, each with its own examples."""
    data: Files | None = None
    """File, folder or glob of the examples; aligned files as {source: a.en, target: a.de}. By
    default the test part of `task_config`."""
    columns: dict[str, Columns] | None = None
    """Field of the task: name or number (from 0) of its column; by default as in training."""
    max_examples: int | None = Field(None, ge=1)
    """As many examples at most, drawn by the seed."""
    in_context: int | None = Field(None, ge=0)
    """Answered examples of each label before every question, for classification by cloze; as many
    as the task says by default."""
    train: Files | None = None
    """Where those are drawn from; by default the training part of `task_config`."""
    num_seeds: int = Field(1, ge=1)
    """Draws of answered examples, by `seed` and those that follow it."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest question in tokens, answered examples included; by default as in training."""
    seed: int = 0
    """Seed of all draws."""
    pool: PoolSettings | None = None
    """Engines that answer side by side under Ray Data, part by part, each part kept: the same
    command goes on where it was broken off. null: one engine, in this process."""
    output: str | None = None
    """Folder of predictions and scores; by default `evaluation` in the run's folder."""


@dataclass(frozen=True)
class Asked:
    """A task and its examples."""

    task: "Task[Any]"
    test: list["Example"]
    """Those that are scored."""
    train: list["Example"]
    """Those that may be shown in context."""


def asked_of(
    settings: EvaluateSettings, folder: Path, model: "GLM", tokenizer: "Tokenizer"
) -> Asked:
    """What is asked of the model in `folder`.

    Raises:
        ConfigError: when no task or no example is known, or the model cannot answer.
    """
    from glm_dist.tasks.examples import read_examples

    if settings.task_config is None:
        asked = _carried(settings, folder, model, tokenizer)
    else:
        asked = _configured(settings, settings.task_config, model, tokenizer)
    asked = _part_of(asked, settings)
    task, test, train = _asked_otherwise(settings, asked.task, model), asked.test, asked.train
    columns = task.settings.columns if settings.columns is None else settings.columns
    if settings.data is not None:
        update = {"test": settings.data, "columns": columns, "max_examples": settings.max_examples}
        test = read_examples(_changed(task.settings, update), "test", settings.seed)
        test = task.relate(task.settings, test)
    if settings.train is not None:
        update = {"train": settings.train, "columns": columns, "max_examples": None}
        train = read_examples(_changed(task.settings, update), "train")
    if not test:
        raise ConfigError("data: names no examples; give a file, a folder or a glob")
    if getattr(task.settings, "in_context", 0) and not train:
        raise ConfigError(
            "train: names no examples to be shown in context; give a file, or in_context=0"
        )
    return Asked(task, test, train)


def _part_of(asked: Asked, settings: EvaluateSettings) -> Asked:
    """One task of a mixture; the whole where none is named and no examples are to be read."""
    from glm_dist.tasks.mixture import Mixture, examples_of

    task, name = asked.task, settings.part
    if not isinstance(task, Mixture):
        if name is not None:
            raise ConfigError(f"part: got {name!r}, and the task is no mixture; leave it out")
        return asked
    if name is None and settings.data is None and asked.test:
        return asked
    if name not in task.parts:
        raise ConfigError(
            f"part: got {name!r}; the model was tuned for several tasks, so name one of "
            f"{', '.join(task.parts)}"
        )
    return Asked(task.parts[name], examples_of(name, asked.test), examples_of(name, asked.train))


def _carried(
    settings: EvaluateSettings, folder: Path, model: "GLM", tokenizer: "Tokenizer"
) -> Asked:
    from glm_dist.engine.folders import model_folder
    from glm_dist.tasks import load_task

    task = load_task(model_folder(folder), tokenizer, pools_first=model.settings.pools_first)
    if task is None:
        raise ConfigError(
            f"model: {folder} carries no task; give a model that jobs/finetune.py has tuned, or "
            "the config of a task as task_config"
        )
    return Asked(task, [], [])


def _configured(
    settings: EvaluateSettings, path: str, model: "GLM", tokenizer: "Tokenizer"
) -> Asked:
    """A config's task, and its examples as fine-tuning would share them out."""
    from glm_dist.tasks import Binding, build_task
    from glm_dist.tasks.examples import take
    from glm_dist.train.finetune import open_task
    from glm_dist.train.finetune_settings import FinetuneSettings

    given = load_config(FinetuneSettings, path)
    unbound, splits = open_task(given)
    binding = Binding(
        tokenizer,
        given.rows.sequence_length,
        given.objective,
        pools_first=model.settings.pools_first,
    )
    task = build_task(unbound.settings, binding)
    if not model.settings.head.scores_like(task.head):
        raise ConfigError(
            f"task_config: {path} asks for another head than the model has; tune one by "
            "jobs/finetune.py, or set task.method: cloze"
        )
    test = take(splits["test"] or splits["validation"], settings.max_examples, settings.seed)
    return Asked(task, test, splits["train"])


def _asked_otherwise(settings: EvaluateSettings, task: "Task[Any]", model: "GLM") -> "Task[Any]":
    """The task with what the job's own settings say of it."""
    from dataclasses import replace

    from glm_dist.tasks import build_task

    found, longest = task.settings, model.settings.max_position_embeddings
    if settings.in_context is not None:
        if "in_context" not in type(found).model_fields:
            raise ConfigError(f"in_context: is there for classification, not for {found.kind}")
        found = _changed(found, {"in_context": settings.in_context})
    max_tokens = settings.max_tokens or task.binding.max_tokens
    if max_tokens > longest:
        raise ConfigError(
            f"max_tokens: got {max_tokens}; the model's positions end at {longest}, so give less"
        )
    return build_task(found, replace(task.binding, max_tokens=max_tokens))


def _changed(task: Any, changes: dict[str, Any]) -> Any:
    """A task's settings with some of them changed."""
    try:
        return type(task)(**{**task.model_dump(), **changes})
    except ValidationError as error:
        raise ConfigError([f"task: {one['msg']}" for one in error.errors()]) from None
