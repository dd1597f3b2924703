"""The checkpoints of a run folder: which are whole, which is the newest, which may go.

It stands apart because it alone decides; nothing else looks at folder names or dates.
"""

import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from glm_dist.engine.checkpoint import (
    Checkpoint,
    DamagedError,
    FileRecord,
    read_manifest,
    verify,
    write_manifest,
    write_rank_file,
)
from glm_dist.engine.snapshot import SliceSource
from glm_dist.engine.storage import (
    append_json_line,
    read_json_lines,
    remove_folder,
    rename_folder,
    write_json,
)
from glm_dist.errors import CheckpointError

logger = logging.getLogger(__name__)

Exchange = Callable[[Any], list[Any]]
"""Gives a small object of every rank to every rank, in rank order; a barrier too."""

LINEAGE_NAME = "lineage.jsonl"
LEASES = "leases"
LEASE_SECONDS = 3600.0
SCORE_KEY = "score"
"""Entry of a checkpoint's state by which one is the best; lower is better."""
_NAME = re.compile(r"checkpoint-(\d{8,})")


@dataclass(frozen=True)
class Damage:
    """A checkpoint that did not verify."""

    folder: Path
    """Where it lies now, under a name that says why."""
    reason: str


def exchange_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """`Exchange` over a process group, by default torch's own; of one rank where there is none."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


class Catalogue:
    """The checkpoints in a run folder, on a file system that all ranks share.

    A folder `checkpoint-<step>` appears by one rename after everything in it is on the disk.
    `lineage.jsonl` records what a rewind has retired: newest means newest that is not retired.
    """

    def __init__(
        self,
        run_folder: str | Path,
        keep_last: int = 2,
        milestone_every_steps: int = 0,
        permit: Callable[[], None] = lambda: None,
    ) -> None:
        """Set up a view of the folder; nothing is read or written yet.

        Args:
            run_folder: the run's.
            keep_last: whole checkpoints kept.
            milestone_every_steps: steps between those kept for good; 0 for none.
            permit: raises on the leading rank, right before a commit, if it must not be.
        """
        self.run_folder = Path(run_folder)
        self.damaged: list[Damage] = []
        self._keep_last = max(1, keep_last)
        self._milestone_every_steps = milestone_every_steps
        self._permit = permit
        self._verified: set[str] = set()

    def save(
        self,
        step: int,
        engine: SliceSource,
        state: dict[str, Any],
        exchange: Exchange = exchange_objects,
    ) -> Path:
        """Commit a checkpoint; every rank calls it and gets its folder.

        Args:
            step: steps of the loop that are done.
            engine: gives the slices; an engine, or a snapshot of one.
            state: plain values that resuming needs; they are in the manifest.
            exchange: reaches all ranks.

        Raises:
            CheckpointError: on all ranks, when one of them cannot write; older checkpoints stay.
        """
        leads = engine.rank == 0
        name = f"checkpoint-{step:08d}"
        attempt = exchange(uuid.uuid4().hex[:12])[0]
        folder = self.run_folder / f"{name}.tmp-{attempt}"
        written = exchange(_attempt(lambda: self._write_share(folder, engine)))
        problem = _first_problem(written)
        if problem is None and leads:
            problem = _first_problem(
                [_attempt(lambda: self._commit(folder, step, attempt, written, engine, state))]
            )
        problem = exchange(problem)[0]
        if problem is not None:
            if leads:
                remove_folder(folder)
            raise CheckpointError(
                f"{folder}: the checkpoint of step {step} was not written: {problem}; older ones "
                f"are untouched, make room or mend the file system and resume"
            )
        return self.run_folder / name

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint on the current lineage, None in a folder without any.

        Every byte is verified. Damaged ones met on the way are set aside under a name with the
        reason, listed in `damaged`, and never deleted. One process calls it, before a run starts.

        Raises:
            CheckpointError: when there are checkpoints, but none is whole.
        """
        for folder in self._candidates():
            checkpoint = self._verify(folder)
            if checkpoint is not None:
                return checkpoint
        broken = sorted(path.name for path in self.run_folder.glob("checkpoint-*.damaged-*"))
        if broken:
            raise CheckpointError(
                f"{self.run_folder}: holds checkpoints and none is whole ({', '.join(broken)}); "
                f"restore one, or start afresh in another run folder"
            )
        return None

    @contextlib.contextmanager
    def lease(self, seconds: float = LEASE_SECONDS) -> Iterator[Checkpoint | None]:
        """The newest whole checkpoint, which nobody removes inside the block.

        For readers beside a training run, such as an export. A reader that dies holds it for
        `seconds` at most.
        """
        checkpoint = self.newest()
        if checkpoint is None:
            yield None
            return
        note = self.run_folder / LEASES / f"{checkpoint.folder.name}.{uuid.uuid4().hex[:12]}.json"
        note.parent.mkdir(exist_ok=True)
        write_json(note, {"until": time.time() + seconds})
        try:
            yield checkpoint
        finally:
            note.unlink(missing_ok=True)

    def set_damaged_aside(self) -> None:
        """Verify all that is on the lineage; what is damaged gets a name that says so."""
        for folder in list(self._candidates()):
            self._verify(folder)

    def retire(self, above_step: int, record: dict[str, Any] | None = None) -> list[str]:
        """Take checkpoints later than `above_step` off the lineage by one appended record.

        Args:
            above_step: the last step that stays.
            record: what else belongs to this rewind, such as rows to skip.

        Returns:
            The names of the retired checkpoints, renamed by now.
        """
        retired = {}
        for folder in self._candidates():
            attempt = _attempt_of(folder)
            if _step_of(folder) > above_step and attempt is not None:
                retired[folder.name] = attempt
        line = {"event": "retire", "above_step": above_step, "checkpoints": retired}
        append_json_line(self.run_folder / LINEAGE_NAME, {**line, **(record or {})})
        self._sweep_retired()
        return list(retired)

    def is_retired(self, folder: Path) -> bool:
        """Whether a rewind has taken this folder off the lineage, renamed by now or not yet."""
        return ".retired-" in folder.name or _attempt_of(folder) in self._retired()

    def lineage(self) -> list[dict[str, Any]]:
        """All committed records, oldest first."""
        return list(read_json_lines(self.run_folder / LINEAGE_NAME))

    def _write_share(self, folder: Path, engine: SliceSource) -> FileRecord:
        folder.mkdir(parents=True, exist_ok=True)
        return write_rank_file(folder, engine.rank, engine.slices())

    def _commit(
        self,
        folder: Path,
        step: int,
        attempt: str,
        files: list[FileRecord],
        engine: SliceSource,
        state: dict[str, Any],
    ) -> None:
        write_manifest(folder, step=step, attempt=attempt, files=files, engine=engine, state=state)
        name = f"checkpoint-{step:08d}"
        self._permit()
        if (self.run_folder / name).exists():
            # A run that redoes a step writes it anew; the old one makes room whole.
            rename_folder(self.run_folder / name, f"{name}.tmp-replaced-{attempt}")
        rename_folder(folder, name)
        self._verified.add(attempt)
        self._prune()

    def _candidates(self) -> Iterator[Path]:
        """Folders named as checkpoints and not retired, newest first."""
        self._sweep_retired()
        if not self.run_folder.is_dir():
            return
        folders = [path for path in self.run_folder.iterdir() if _NAME.fullmatch(path.name)]
        yield from sorted(folders, key=_step_of, reverse=True)

    def _verify(self, folder: Path) -> Checkpoint | None:
        """The checkpoint if it is whole; otherwise it is set aside."""
        try:
            if _attempt_of(folder) in self._verified:
                return read_manifest(folder)
            checkpoint = verify(folder)
            if checkpoint.step != _step_of(folder):
                raise DamagedError("step", f"{folder} holds step {checkpoint.step}")
        except DamagedError as damage:
            self._set_aside(folder, damage)
            return None
        self._verified.add(checkpoint.attempt)
        return checkpoint

    def _set_aside(self, folder: Path, damage: DamagedError) -> None:
        name = f"{folder.name}.damaged-{damage.reason}"
        if folder.with_name(name).exists():
            name += f"-{uuid.uuid4().hex[:6]}"
        moved = rename_folder(folder, name)
        self.damaged.append(Damage(moved, str(damage)))
        logger.warning("%s is damaged and set aside as %s (%s)", folder.name, name, damage.detail)

    def _prune(self) -> None:
        """Remove what is neither a milestone nor among the last whole ones; then leftovers."""
        num_kept = 0
        folders = list(self._candidates())
        best = self._best(folders)
        for folder in folders:
            is_kept = self._is_milestone(folder) or folder == best
            if num_kept >= self._keep_last:
                if not is_kept and not self._is_leased(folder):
                    remove_folder(rename_folder(folder, f"{folder.name}.tmp-removed"))
            elif self._verify(folder) is not None and not is_kept:
                num_kept += 1
        for leftover in self.run_folder.glob("checkpoint-*.tmp-*"):
            remove_folder(leftover)

    def _best(self, folders: list[Path]) -> Path | None:
        """The one with the lowest score, the latest of equals; None where none has a score."""
        scores = {folder: score for folder in folders if (score := _score_of(folder)) is not None}
        return min(scores, key=lambda folder: scores[folder], default=None)

    def _is_leased(self, folder: Path) -> bool:
        notes = (self.run_folder / LEASES).glob(f"{folder.name}.*.json")
        return any(_lease_end(note) > time.time() for note in notes)

    def _is_milestone(self, folder: Path) -> bool:
        every = self._milestone_every_steps
        return every > 0 and _step_of(folder) % every == 0

    def _retired(self) -> dict[str, str]:
        """Attempt names that lineage records retired, with their folder names."""
        return {
            attempt: name
            for record in self.lineage()
            if record.get("event") == "retire"
            for name, attempt in record["checkpoints"].items()
        }

    def _sweep_retired(self) -> None:
        """Rename what is retired, which a crash right after the record may have left undone."""
        for attempt, name in self._retired().items():
            folder = self.run_folder / name
            if folder.is_dir() and _attempt_of(folder) == attempt:
                rename_folder(folder, f"{name}.retired-{attempt}")


def _step_of(folder: Path) -> int:
    match = _NAME.match(folder.name)
    return int(match[1]) if match else -1


def _attempt_of(folder: Path) -> str | None:
    try:
        return read_manifest(folder).attempt
    except DamagedError:
        return None


def _score_of(folder: Path) -> float | None:
    try:
        return read_manifest(folder).state.get(SCORE_KEY)
    except DamagedError:
        return None


def _lease_end(note: Path) -> float:
    try:
        return float(json.loads(note.read_text())["until"])
    except (OSError, ValueError):
        return 0.0  # given back just now


@dataclass(frozen=True)
class _Problem:
    text: str


def _attempt(action: Callable[[], Any]) -> Any:
    """What an action returns, or its error as something that can be sent to other ranks."""
    try:
        return action()
    except Exception as error:  # any: a rank that leaves alone would let all others wait forever
        logger.debug("a share of a checkpoint was not written", exc_info=True)
        return _Problem(f"{type(error).__name__}: {error}")


def _first_problem(results: list[Any]) -> str | None:
    for rank, result in enumerate(results):
        if isinstance(result, _Problem):
            return f"rank {rank}: {result.text}"
    return None
