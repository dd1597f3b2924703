"""One resume decision an attempt: which checkpoint, which next row, written down before it is used.

Data, weights and schedule all read this one record, so that they cannot disagree.
"""

import contextlib
import json
import logging
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from glm_dist.config import dump_config
from glm_dist.engine import Catalogue, Checkpoint
from glm_dist.engine.checkpoint import read_manifest
from glm_dist.engine.object_store import open_store
from glm_dist.engine.remote import open_location
from glm_dist.engine.storage import write_json
from glm_dist.engine.store import OWNER_NAME
from glm_dist.errors import CheckpointError, LaunchError
from glm_dist.train.settings import CheckpointSettings, GuardSettings, PretrainSettings
from glm_dist.train.state import Ending, Rewind, TrainState

logger = logging.getLogger(__name__)

CHANGEABLE = (
    *("workers", "sinks", "run_folder", "guard"),
    *(f"checkpoints.{name}" for name in CheckpointSettings.model_fields if name != "folder"),
)
"""Settings a run may be resumed with other values of; the curve of a healthy run does not depend on
them."""
IDENTITY_NAME = "identity"
"""A random name, by which a run's checkpoints elsewhere know whose they are."""


@dataclass(frozen=True)
class Attempt:
    """Where one launch of the workers starts from."""

    number: int
    world_size: int
    checkpoint: str | None
    """Folder of the checkpoint, None for a fresh start."""
    state: dict[str, Any]
    damaged: list[str]
    """Checkpoints that did not verify and were set aside."""

    @property
    def train_state(self) -> TrainState:
        """The loop's position."""
        return TrainState.from_json(self.state)

    def open_checkpoint(self) -> Checkpoint | None:
        """The checkpoint decided on, verified when it was."""
        return None if self.checkpoint is None else read_manifest(open_location(self.checkpoint))


def decide_attempt(
    run_folder: Path, settings: PretrainSettings, fingerprints: dict[str, str], world_size: int
) -> Attempt:
    """Choose the newest verified checkpoint and write the decision into the run folder.

    Raises:
        CheckpointError: when the checkpoint belongs to other data or another row order.
        LaunchError: when the last attempt asked for one rewind too many.
    """
    catalogue = Catalogue(settings.checkpoint_location or run_folder)
    number = newest_number(run_folder) + 1
    last_ending = read_ending(run_folder, number - 1)
    skipped = settle_rewinds(catalogue, number - 1, last_ending, settings.guard)
    checkpoint = catalogue.newest()
    state = TrainState().to_json()
    if checkpoint is not None:
        state = dict(checkpoint.state["train"])
        _check_fingerprints(checkpoint, fingerprints)
    state["skipped"] = skipped
    attempt = Attempt(
        number=number,
        world_size=world_size,
        checkpoint=None if checkpoint is None else str(checkpoint.folder),
        state=state,
        damaged=[f"{damage.folder.name}: {damage.reason}" for damage in catalogue.damaged],
    )
    _create(attempts_folder(run_folder) / f"attempt-{number:05d}.json", asdict(attempt))
    return attempt


def settle_rewinds(
    catalogue: Catalogue, last_attempt: int, ending: Ending | None, settings: GuardSettings
) -> list[list[int]]:
    """Abandon what the last attempt wished to go back from, once; all rows skipped so far.

    One record in the lineage is the rewind. A driver killed before it finds the wish again, one
    killed after it the record.

    Raises:
        LaunchError: when the run has gone back too often already.
    """
    done = [record for record in catalogue.lineage() if "skip" in record]
    rewind = None if ending is None else ending.rewind
    if rewind is not None and all(record["attempt"] != last_attempt for record in done):
        if len(done) >= settings.max_rewinds:
            raise LaunchError(
                f"the numbers were in trouble again at step {rewind.above_step}, after "
                f"{len(done)} rewinds (guard.max_rewinds {settings.max_rewinds}), so other rows do "
                "not help; look at events.jsonl in the run folder, then lower "
                "schedule.peak_learning_rate in a new run, or resume with a higher "
                "guard.outlier_factor or guard.max_rewinds"
            )
        record = {"attempt": last_attempt, "skip": list(rewind.skip)}
        abandoned = catalogue.retire(rewind.above_step, record)
        logger.warning(
            "going back to before step %d, without rows %d to %d; abandoned: %s",
            *(rewind.above_step, *rewind.skip, ", ".join(abandoned) or "no checkpoint"),
        )
        done.append(record)
    return [record["skip"] for record in done]


def write_ending(run_folder: Path, number: int, ending: Ending) -> None:
    """Say how an attempt's ranks left the loop."""
    write_json(_ending_path(run_folder, number), asdict(ending))


def read_ending(run_folder: Path, number: int) -> Ending | None:
    """What rank 0 wrote, None where the attempt did not come to an end."""
    path = _ending_path(run_folder, number)
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    if values["rewind"] is not None:
        start, stop = values["rewind"]["skip"]
        values["rewind"] = Rewind(values["rewind"]["above_step"], (start, stop))
    return Ending(**values)


def _ending_path(run_folder: Path, number: int) -> Path:
    return run_folder / "attempts" / f"ended-{number:05d}.json"


def is_superseded(run_folder: Path, number: int) -> bool:
    """Whether a later attempt has been decided on, so that this one must not commit any more."""
    return newest_number(run_folder) > number


def newest_number(run_folder: Path) -> int:
    """Number of the latest decision, -1 in a run without any."""
    names = [path.stem for path in attempts_folder(run_folder).glob("attempt-*.json")]
    return max((int(name.removeprefix("attempt-")) for name in names), default=-1)


def _create(path: Path, values: dict[str, Any]) -> None:
    """Write a file whole under a name that nobody else has taken.

    Raises:
        LaunchError: when somebody has.
    """
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    temporary.write_text(json.dumps(values, indent=1))
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise LaunchError(f"{path}: another driver has just started this run") from None
    finally:
        temporary.unlink()


def read_attempts(run_folder: Path) -> list[Attempt]:
    """All decisions of a run, oldest first."""
    paths = sorted(attempts_folder(run_folder).glob("attempt-*.json"))
    return [Attempt(**json.loads(path.read_text())) for path in paths]


def attempts_folder(run_folder: Path) -> Path:
    """Where the decisions lie; made if missing."""
    folder = run_folder / "attempts"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def claim_run_folder(run_folder: Path, settings: PretrainSettings) -> None:
    """Write the resolved config into a new run folder, or find that an old one is of this run.

    Raises:
        CheckpointError: naming each setting whose value differs from the folder's run.
    """
    path = run_folder / "config.json"
    chosen = settings.model_dump(mode="json")
    if path.exists():
        differences = _differences(_with_new_settings(path.read_text(), settings), chosen)
        if differences:
            raise CheckpointError(
                f"{run_folder}: holds a run of another config:\n"
                + "\n".join(f"  {line}" for line in differences)
                + "\nuse its values to go on with it, or another run_folder or name to start anew"
            )
    run_folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    temporary.write_text(json.dumps(chosen, indent=1))
    os.replace(temporary, path)
    (run_folder / "config.yaml").write_text(dump_config(settings), encoding="utf-8")
    claim_checkpoints(run_folder, settings)


def claim_checkpoints(run_folder: Path, settings: PretrainSettings) -> None:
    """Make the checkpoints' folder this run's own, where it is not the run folder.

    Raises:
        CheckpointError: when it is another run's, or its storage does not answer.
    """
    location = settings.checkpoint_location
    if location is None:
        return
    with contextlib.suppress(FileExistsError), (run_folder / IDENTITY_NAME).open("x") as file:
        file.write(uuid.uuid4().hex)
    try:
        open_store(location).claim((run_folder / IDENTITY_NAME).read_text())
        is_ours = has_checkpoints(run_folder, location)
    except OSError as error:
        raise CheckpointError(
            f"checkpoints.folder: {location} cannot be written ({error}); make the bucket or "
            "folder, give this machine the right to write there, or choose another"
        ) from None
    if not is_ours:
        raise CheckpointError(
            f"checkpoints.folder: {location} holds the checkpoints of another run; choose another "
            f"folder, or go on with them from here by removing {OWNER_NAME} there"
        )


def has_checkpoints(run_folder: Path, location: str) -> bool:
    """Whether the checkpoints at a place are still this run's."""
    return open_store(location).owner() == (run_folder / IDENTITY_NAME).read_text()


def _with_new_settings(text: str, settings: PretrainSettings) -> Any:
    """The config of an old run, with the defaults of settings that there were none of then."""
    try:
        return type(settings).model_validate_json(text).model_dump(mode="json")
    except ValidationError:
        return json.loads(text)


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if key in CHANGEABLE:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            line
            for name in names
            for line in _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    return [] if old == new else [f"{key}: {old!r} there, {new!r} now"]


def _check_fingerprints(checkpoint: Checkpoint, fingerprints: dict[str, str]) -> None:
    for name, expected in fingerprints.items():
        found = checkpoint.state["fingerprints"][name]
        if found != expected:
            raise CheckpointError(
                f"{checkpoint.folder}: was trained on another {name} ({found[:12]}… there, "
                f"{expected[:12]}… now), so its rows would not continue; give it the data it was "
                "trained on, or start another run"
            )
