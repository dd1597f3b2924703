"""A run on a file system that fills up in the middle of saving; started in a mount namespace.

Arguments: folder of the dataset, and one for the run, which becomes a small file system of its own.
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from train_scenarios import Runner, make_settings

from glm_dist.data.shards import TokenDataset
from glm_dist.engine import Catalogue

FULL_AT, ROOMY_AT, STEPS = 8, 12, 16


def main(dataset_folder: Path, mounted: Path) -> None:
    """For each tenth of a save: what was warned of, what was left, and the losses."""
    dataset = TokenDataset.open(dataset_folder)
    settings = make_settings(
        dataset,
        duration={"num_steps": STEPS},
        model={"hidden_size": 64},
        checkpoints={"every_steps": 4, "keep_last": 9, "asynchronous": False},
    )
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", mounted], check=True)
    runs = [run(dataset, settings, mounted / f"run-{tenth}", tenth) for tenth in range(11)]
    print(json.dumps(runs))


def run(dataset: TokenDataset, settings, folder: Path, tenth: int) -> dict:
    """A run whose disk has room for so many tenths of its second checkpoint; 0: for all of it."""
    runner = Runner(dataset, settings, folder)
    warnings = Warnings()
    filler = folder.parent / "filler"
    batches = runner.batches

    def watched(state):
        for number, rows in enumerate(batches(state)):
            step = number // 2
            if tenth and step == FULL_AT - 1 and not filler.exists():
                whole = sum(p.stat().st_size for p in folder.glob("checkpoint-00000004/*"))
                leave_room(filler, whole * (tenth - 1) // 10)
            if step == ROOMY_AT - 1:
                filler.unlink(missing_ok=True)
            yield rows

    runner.batches = watched
    with warnings:
        step = runner.run().step
    return {
        "step": step,
        "losses": runner.losses(),
        "warned": warnings.texts,
        "whole": sorted(path.name for path in folder.glob("checkpoint-*")),
        "resumes": Catalogue(folder).newest().step,
    }


def leave_room(filler: Path, num_bytes: int) -> None:
    """Fill the file system of `filler` up to so many free bytes."""
    stat = os.statvfs(filler.parent)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - num_bytes)


class Warnings(logging.Handler):
    """Collects what the package warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep its text."""
        self.texts.append(record.getMessage())

    def __enter__(self) -> None:
        logging.getLogger("glm_dist").addHandler(self)

    def __exit__(self, *exception: object) -> None:
        logging.getLogger("glm_dist").removeHandler(self)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
