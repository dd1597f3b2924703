"""What a run folder holds, whether it is whole, and what a run started now would resume from."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm_dist.engine import Catalogue
from glm_dist.engine.checkpoint import DamagedError, verify
from glm_dist.engine.store import Found
from glm_dist.errors import CheckpointError
from glm_dist.train.settings import checkpoint_location
from glm_dist.train.supervise import Journal, clear_stop, read_holder, read_stop


@dataclass(frozen=True)
class CheckedFolder:
    """A folder named as a checkpoint."""

    name: str
    state: str
    """whole, damaged, set aside, retired or unfinished."""
    detail: str = ""


@dataclass(frozen=True)
class Findings:
    """All there is to say about a run folder."""

    checkpoints: list[CheckedFolder]
    resume_from: str | None
    """Name of the checkpoint a run started now would go on from."""
    stop_reason: str | None
    holder: str | None
    attempts: int
    failures: list[str] = field(default_factory=list)

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is damaged and nothing stands in the way of a start."""
        return self.holder is None and all(c.state != "damaged" for c in self.checkpoints)


def examine(run_folder: Path) -> Findings:
    """Look at every byte of every checkpoint; nothing is changed.

    Raises:
        CheckpointError: when the folder is not that of a run.
    """
    if not (run_folder / "config.json").exists():
        raise CheckpointError(
            f"{run_folder}: is not the folder of a run (it has no config.json); give the folder "
            "that pretrain printed as run folder"
        )
    checkpoints = [check(found) for found in reversed(open_catalogue(run_folder).survey())]
    whole = [checkpoint.name for checkpoint in checkpoints if checkpoint.state == "whole"]
    events = Journal(run_folder).read()
    stop = read_stop(run_folder)
    return Findings(
        checkpoints=checkpoints,
        resume_from=max(whole, default=None),
        stop_reason=None if stop is None else stop["reason"],
        holder=read_holder(run_folder),
        attempts=sum(event["event"] == "attempt" for event in events),
        failures=[event["failure"] for event in events if event["event"] == "failed"],
    )


def open_catalogue(run_folder: Path) -> Catalogue:
    """Of a run's checkpoints, wherever its config has them."""
    config = json.loads((run_folder / "config.json").read_text(encoding="utf-8"))
    return Catalogue(checkpoint_location(config["checkpoints"].get("folder")) or run_folder)


def check(found: Found) -> CheckedFolder:
    """One folder; of a committed one the bytes are compared with its manifest."""
    folder, state = found
    if state != "committed":
        return CheckedFolder(folder.name, "set aside" if state == "damaged" else state)
    try:
        manifest = verify(folder).manifest
    except (DamagedError, CheckpointError) as error:
        return CheckedFolder(folder.name, "damaged", str(error))
    written_by = f"{manifest['world_size']} ranks, {manifest['backend']}"
    return CheckedFolder(folder.name, "whole", f"{written_by}, next row {next_row(manifest)}")


def next_row(manifest: dict[str, Any]) -> int:
    """The first row the checkpoint has not seen."""
    return int(manifest["state"]["train"]["next_row"])


def mend(run_folder: Path, findings: Findings) -> list[str]:
    """Do what cannot lose anything: set damaged checkpoints aside, remove unfinished ones and STOP.

    Returns:
        What was done.
    """
    if findings.holder is not None:
        raise CheckpointError(
            f"{run_folder}: {findings.holder} is training it; stop that first, nothing was mended"
        )
    done = []
    catalogue = open_catalogue(run_folder)
    if any(checkpoint.state == "damaged" for checkpoint in findings.checkpoints):
        catalogue.set_damaged_aside()
        done += [f"set aside {damage.folder.name}" for damage in catalogue.damaged]
    for found in catalogue.survey():
        if found.state == "unfinished":
            catalogue.store.remove(found.folder)
            done.append(f"removed {found.folder.name}, which was never finished")
    if findings.stop_reason is not None:
        clear_stop(run_folder)
        done.append("removed STOP")
    return done
