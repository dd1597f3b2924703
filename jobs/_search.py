"""A search over settings as people follow it: its trials, and what was best."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain import format_seconds

if TYPE_CHECKING:
    from glm_dist.train.finetune_settings import FinetuneSettings
    from glm_dist.train.search import Found, Trial

Train = Callable[["FinetuneSettings"], None]


def search_settings(settings: "FinetuneSettings", count: int, train: Train) -> "FinetuneSettings":
    """Try so many settings, and give those that dev likes best.

    Raises:
        ConfigError: when there is nothing to search.
    """
    from glm_dist.train.search import best_of, changed, draw_search, plan_search

    trials = plan_search(settings, count)
    folder = settings.run_path / "search"
    found, begun, tried = list["Found"](), time.monotonic(), 0
    for trial in trials:
        print(f"\ntrial {trial.number + 1} of {len(trials)}  {trial.told}", flush=True)
        known = trial.found
        if known is None:
            known, tried = run(trial, train), tried + 1
        left = (time.monotonic() - begun) / tried * (len(trials) - trial.number - 1) if tried else 0
        eta = f", {format_seconds(left)} left" if left else ""
        found.append(known)
        print(f"  dev {known.judged} {known.value:.4f}{eta}", flush=True)
    best = best_of(found)
    keep(folder / "search.json", found, best)
    draw_search(folder / "search.svg", found)
    show(found, best)
    print(f"search       {folder}: search.json, search.svg")
    print(f"best         {best.trial.told}", flush=True)
    return changed(settings, best.trial.chosen)


def run(trial: "Trial", train: Train) -> "Found":
    """One trial to its end; of its model nothing is kept, for the best one is tuned anew."""
    train(trial.settings)
    folder = trial.settings.run_path
    for path in [*folder.glob("checkpoint-*"), folder / "model"]:
        shutil.rmtree(path)
    found = trial.found
    assert found is not None, "a finished run has its final figures"
    return found


def keep(path: Path, found: list["Found"], best: "Found") -> None:
    """What came of all trials, as JSON."""
    document = {"best": best.told, "trials": [one.told for one in found]}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")


def show(found: list["Found"], best: "Found") -> None:
    """All trials, the best first."""
    print(f"\ntrial  dev {best.judged:<7}  settings")
    for one in sorted(found, key=lambda one: (one.value, one.trial.number)):
        print(f"{one.trial.number + 1:>5}  {one.value:<11.4f}  {one.trial.told}")
