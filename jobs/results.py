#!/usr/bin/env python3
"""One task with all its arms: the tuned base, the same from random weights, and baselines.

make results TASK=en_sst2
python jobs/results.py --config jobs/configs/tasks/FILE init_from=runs/base --docs docs/results
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _driver import RESUME_ME
from _job import run_job
from _training import launch_shown
from finetune import StoppedError, TuningTerminal

from glm_dist.config import output_path
from glm_dist.train.arms import ArmSettings

if TYPE_CHECKING:
    from glm_dist.train.finetune import Prepared

KEYS = {"en_blanks": "infill", "zh_crosswoz_choice": "zh_crosswoz"}
"""Name of a config: what its task is called in the table, where that is another."""


def main(settings: ArmSettings, arguments: argparse.Namespace) -> int:
    """Run every arm, put the figures into the table; RESUME_ME when asked to stop early."""
    from glm_dist.evaluate.results import entries_of, publish_entry
    from glm_dist.metrics.provenance import provenance
    from glm_dist.train.arms import Arms

    origin, begun = provenance(), time.monotonic()
    arms = Arms(settings, train, show, origin)
    arms.check(arguments.arms or arms.names)
    print_grid(settings, arms.base_hash)
    try:
        for name in arguments.arms or arms.names:
            arms.run(name)
    except StoppedError:
        print("next         the same command again goes on with the arm that it was at")
        return RESUME_ME
    found = {name: kept for name in arms.names if (kept := arms.kept(name))}
    not_run = [name for name in arms.names if name not in found]
    answers = {name: arm.answers for name, arm in found.items()}
    called = KEYS.get(settings.name, settings.name)
    entries = entries_of(called, arms.task, arms.examples, answers, not_run)
    grid = settings.grid.model_dump()
    grid |= {"most_epochs": settings.epochs, "lstm_epochs": settings.baselines.lstm.num_epochs}
    docs = Path(arguments.docs) if arguments.docs else output_path("results")
    for key, entry in entries.items():
        for name, arm in found.items():
            entry["arms"][name]["chosen"] = arm.chosen
        entry |= {"base": arms.base_hash, "grid": grid, "told": told(settings, arms.base_hash)}
        print_entry(entry)
        page = publish_entry(docs, key, entry, origin)
    if not_run:
        print(f"not run      {', '.join(not_run)}: the same command without --arm runs all")
    print(f"table        {page}, after {(time.monotonic() - begun) / 60:.0f} minutes")
    return 0


def train(prepared: "Prepared") -> None:
    """Tune under Ray Train.

    Raises:
        StoppedError: when the run was asked to stop.
    """
    from glm_dist.train.launch import resolve

    settings = resolve(prepared.settings, prepared.dataset)
    launched = launch_shown(settings, TuningTerminal(settings.num_steps, prepared.steps_per_epoch))
    if launched.ending.kind != "finished":
        raise StoppedError


def told(settings: ArmSettings, base: str | None) -> dict[str, str]:
    """What a reader of the figures needs to know of how they came about."""
    grid = settings.grid
    return {
        "Learning rates": ", ".join(f"{rate:g}" for rate in grid.learning_rates),
        "Epochs": f"up to {settings.epochs:g}, LSTM {settings.baselines.lstm.num_epochs}",
        "Seeds": ", ".join(map(str, grid.seeds)),
        "Base": f"{settings.init_from}, {f'sha256 {base}' if base else 'not made yet'}",
    }


def print_grid(settings: ArmSettings, base: str | None) -> None:
    """What is chosen from on dev."""
    for name, value in told(settings, base).items():
        print(f"{name.lower():<14} {value}")


def print_entry(entry: dict[str, Any]) -> None:
    """Each arm's score, and the gains over them."""
    for name, arm in entry["arms"].items():
        if arm["score"] is None:
            continue
        low, high = arm["interval"]
        print(f"{name:<12} {entry['metric']} {arm['score']:.1f} ({low:.1f} to {high:.1f})")
    for name, one in entry["gains"].items():
        low, high = one["interval"]
        print(f"over {name:<12} {one['score']:+.1f} ({low:+.1f} to {high:+.1f})")


def show(line: str) -> None:
    """What is tried, as it is."""
    print(line, flush=True)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that are no settings."""
    parser.add_argument(
        "--arm",
        dest="arms",
        action="append",
        metavar="NAME",
        help="run this one alone; may be given more than once, and needs no base for baselines",
    )
    parser.add_argument(
        "--docs", metavar="FOLDER", help="where the table lies; by default below GLM_DIST_HOME"
    )


if __name__ == "__main__":
    sys.exit(run_job(main, ArmSettings, description=__doc__ or "", add_flags=add_flags))
