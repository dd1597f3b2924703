"""Tasks as data: one file each, from a labelled example to GLM samples and from replies to answers.

A new kind is one file with its settings and its class, and two lines in `kinds`.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from glm_dist.errors import DataError
from glm_dist.tasks.kinds import KINDS, AnyKind
from glm_dist.tasks.mixture import Mixture, MixtureSettings
from glm_dist.tasks.settings import TaskSettings
from glm_dist.tasks.task import Answer, Binding, Question, Reply, Task, TaskSample
from glm_dist.tokenizer import Tokenizer

AnyTask = Annotated[AnyKind | MixtureSettings, Field(discriminator="kind")]
"""The settings of one task, or of several together."""

TASKS: dict[str, type[Task[Any]]] = {**KINDS, "mixture": Mixture}

WHERE_EXAMPLES_LAY = {"train", "dev", "test", "max_examples"}

TASK_FILE = "task.json"
"""In a model's folder: what it was tuned for, so that it is asked the same way later."""


def build_task(settings: TaskSettings, binding: Binding | None = None) -> Task[Any]:
    """The task of these settings, bound to a tokenizer where it is to make samples."""
    return TASKS[settings.kind](settings, binding)


def read_task(values: Any, origin: str) -> TaskSettings:
    """The settings that a dataset or a model folder carries.

    Raises:
        DataError: when they are none of this release.
    """
    try:
        return TypeAdapter(AnyTask).validate_python(values)
    except ValidationError as error:
        raise DataError(f"{origin}: describes no task of this release ({error})") from None


def save_task(folder: Path, settings: TaskSettings, max_tokens: int) -> None:
    """Leave the task with a model that was tuned for it; where its examples lay is left out."""
    exclude: Any = dict.fromkeys(WHERE_EXAMPLES_LAY, True)
    exclude |= {"tasks": {"__all__": WHERE_EXAMPLES_LAY}}
    values = settings.model_dump(mode="json", exclude=exclude)
    text = json.dumps({"task": values, "max_tokens": max_tokens}, indent=1, ensure_ascii=False)
    (folder / TASK_FILE).write_text(text, encoding="utf-8")


def load_task(folder: Path, tokenizer: Tokenizer, *, pools_first: bool = True) -> Task[Any] | None:
    """The task of a model's folder, None where it has none.

    Raises:
        DataError: when the file is no task of this release.
    """
    path = folder / TASK_FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        settings, max_tokens = values["task"], int(values["max_tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    binding = Binding(tokenizer, max_tokens, pools_first=pools_first)
    return build_task(read_task(settings, str(path)), binding)


__all__ = [
    "TASKS",
    "TASK_FILE",
    "Answer",
    "AnyTask",
    "Binding",
    "Question",
    "Reply",
    "Task",
    "TaskSample",
    "TaskSettings",
    "build_task",
    "load_task",
    "read_task",
    "save_task",
]
