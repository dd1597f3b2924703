"""A search over a fine-tuning run's settings: what is tried, and which of it was best on dev.

Which trials there are follows from the settings and the seed alone, so that a search that was cut
off goes on with the trial that it was at. Values are drawn from the spaces of Ray Tune; trials run
one after the other, each over all workers of the run, as the run itself would.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from glm_dist.errors import ConfigError
from glm_dist.train.finetune_settings import FinetuneSettings

UNIMPORTANT = {"name", "run_folder", "workers", "sinks", "search"}
"""Settings that what comes of a trial does not depend on."""
TRIES = 20
"""Draws for a trial that is none of those before."""


@dataclass(frozen=True)
class Trial:
    """Some settings that are tried together."""

    number: int
    chosen: dict[str, Any]
    """By the names that settings have on the command line."""
    settings: FinetuneSettings
    """The run."""

    @property
    def told(self) -> str:
        """What is tried, as it is typed."""
        return " ".join(f"{name}={_typed(value)}" for name, value in self.chosen.items())

    @property
    def found(self) -> "Found | None":
        """What came of it; None while its run has not ended."""
        path = self.settings.run_path / "final.json"
        if not path.exists():
            return None
        figures = json.loads(path.read_text(encoding="utf-8"))
        judged = "error" if "dev/error" in figures else "loss"
        return Found(self, judged, figures[f"dev/{judged}"], figures["best_step"])


@dataclass(frozen=True)
class Found:
    """What came of a trial."""

    trial: Trial
    judged: str
    """What dev judges by: error, or loss where a task has no other score in the loop."""
    value: float
    """That of the best evaluation; less is better."""
    best_step: int

    @property
    def told(self) -> dict[str, Any]:
        """As it is kept."""
        told = {"trial": self.trial.number + 1, **self.trial.chosen}
        return {**told, f"dev_{self.judged}": self.value, "best_step": self.best_step}


def plan_search(settings: FinetuneSettings, count: int) -> list[Trial]:
    """The trials of a search; the first one is the config as it is.

    Raises:
        ConfigError: when there is nothing to judge or to choose.
    """
    spaces, problems = spaces_of(settings), list[str]()
    if count < 2:
        problems.append(f"--search: got {count}; a search tries 2 settings at least")
    if not settings.evaluation.num_rows:
        problems.append("evaluation.num_rows: is 0, so dev judges nothing; leave it out")
    if not spaces:
        problems.append("search: holds one value of each setting; give more, or leave --search out")
    if problems:
        raise ConfigError(problems)
    draws = np.random.RandomState(settings.seed)
    trials = [_trial(settings, 0, {name: _value(settings, name) for name in spaces})]
    for _ in range(1, count):
        for _ in range(TRIES):
            chosen = {name: space.sample(random_state=draws) for name, space in spaces.items()}
            chosen = {name: _plain(value) for name, value in chosen.items()}
            if all(chosen != trial.chosen for trial in trials):
                trials.append(_trial(settings, len(trials), chosen))
                break
    return trials


def spaces_of(settings: FinetuneSettings) -> dict[str, Any]:
    """By setting, Ray Tune's space that its values are drawn from.

    Raises:
        ConfigError: for a value with which there could be no run.
    """
    from ray import tune

    search, low_high = settings.search, _learning_rates(settings)
    choices: dict[str, list[Any]] = {
        "epochs": search.epochs or [settings.epochs],
        "batch.global_batch_size": search.batch_sizes or [settings.batch.global_batch_size],
        "task.patterns": _patterns(settings),
    }
    problems = [
        f"search: {name}={_typed(value)}: {error}"
        for name, values in choices.items()
        for value in values
        for error in _problems(settings, {name: value})
    ]
    if problems:
        raise ConfigError(problems)
    spaces: dict[str, Any] = {
        name: tune.choice(values) for name, values in choices.items() if len(values) > 1
    }
    if low_high[0] < low_high[1]:
        spaces = {"schedule.peak_learning_rate": tune.loguniform(*low_high), **spaces}
    return spaces


def best_of(found: Sequence[Found]) -> Found:
    """The trial that dev likes best; of equals the first."""
    return min(found, key=lambda one: (one.value, one.trial.number))


def draw_search(path: Path, found: Sequence[Found]) -> None:
    """What dev said of each trial, by its learning rate."""
    from glm_dist.evaluate.pictures import draw_points

    best = best_of(found)
    points = [
        (one.trial.settings.schedule.peak_learning_rate, one.value, str(one.trial.number + 1))
        for one in found
    ]
    axes = "learning rate", f"dev {best.judged}"
    draw_points(path, points, found.index(best), f"{len(found)} trials", axes)


def _learning_rates(settings: FinetuneSettings) -> tuple[float, float]:
    given, peak = settings.search.learning_rates, settings.schedule.peak_learning_rate
    return given if given is not None else (peak / 3, peak * 3)


def _patterns(settings: FinetuneSettings) -> list[list[str]]:
    """All patterns together, and each alone; none where there are no several."""
    patterns = list(getattr(settings.task, "patterns", []))
    return [patterns, *([one] for one in patterns)] if len(patterns) > 1 else []


def _value(settings: FinetuneSettings, name: str) -> Any:
    """What the config says of a setting."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _trial(settings: FinetuneSettings, number: int, chosen: dict[str, Any]) -> Trial:
    """Its folder is named by all that it is a run of, so that another run is never taken for it."""
    told = changed(settings, chosen).model_dump_json(exclude=UNIMPORTANT)
    key = hashlib.sha256(told.encode()).hexdigest()[:8]
    folder = settings.run_path / "search" / f"trial-{key}"
    return Trial(number, chosen, changed(settings, {**chosen, "run_folder": str(folder)}))


def changed(settings: FinetuneSettings, changes: dict[str, Any]) -> FinetuneSettings:
    """The settings with others by their dotted names; a batch below a micro-batch shrinks that."""
    values = settings.model_dump(exclude_unset=True)
    for name, value in changes.items():
        *path, last = name.split(".")
        at = values
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    if "batch.global_batch_size" in changes:
        rows = changes["batch.global_batch_size"] // max(1, settings.workers.most)
        micro = min(settings.batch.micro_batch_size, max(1, rows))
        values["batch"]["micro_batch_size"] = micro
    return FinetuneSettings(**values)


def _problems(settings: FinetuneSettings, changes: dict[str, Any]) -> list[str]:
    try:
        changed(settings, changes)
    except ValidationError as error:
        return [one["msg"] for one in error.errors()]
    return []


def _plain(value: Any) -> Any:
    """Three digits of a rate say enough, and can be typed."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _typed(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else f"{value:g}"
    return f"'{text}'" if isinstance(value, list) else text
