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
    build_manifest,
    read_manifest,
    save_slices,
    verify,
)
from glm_dist.engine.object_store import open_store
from glm_dist.engine.remote import AnyPath, RemotePath
from glm_dist.engine.snapshot import SliceSource
from glm_dist.engine.store import Found
from glm_dist.errors import CheckpointError

logger = logging.getLogger(__name__)

Exchange = Callable[[Any], list[Any]]
"""Gives a small object of every rank to every rank, in rank order; a barrier too."""

LEASE_SECONDS = 3600.0
SCORE_KEY = "score"
"""Entry of a checkpoint's state by which one is the best; lower is better."""
_NAME = re.compile(r"checkpoint-(\d{8,})")


@dataclass(frozen=True)
class Damage:
    """A checkpoint that did not verify."""

    folder: AnyPath
    """Where it lies now, marked as what it is."""
    reason: str


def exchange_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """`Exchange` over a process group, by default torch's own; of one rank where there is none."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


class Catalogue:
    """The checkpoints in a folder that all ranks reach, on a disk they share or on object storage.

    A checkpoint appears at once, after everything in it is there. A record of the lineage says
    what a rewind has retired: newest means newest that is not retired.
    """

    def __init__(
        self,
        folder: str | Path | RemotePath,
        keep_last: int = 2,
        milestone_every_steps: int = 0,
        permit: Callable[[], None] = lambda: None,
    ) -> None:
        """Set up a view of the folder; nothing is read or written yet.

        Args:
            folder: the run's, or a URL that pyarrow opens.
            keep_last: whole checkpoints kept.
            milestone_every_steps: steps between those kept for good; 0 for none.
            permit: raises on the leading rank, right before a commit, if it must not be.
        """
        self.store = open_store(folder)
        self.damaged: list[Damage] = []
        self._keep_last = max(1, keep_last)
        self._milestone_every_steps = milestone_every_steps
        self._permit = permit
        self._verified: set[str] = set()

    def trust(self, attempt: str) -> None:
        """Take a checkpoint as verified, by the random name of the save that wrote it."""
        self._verified.add(attempt)

    def save(
        self,
        step: int,
        engine: SliceSource,
        state: dict[str, Any],
        exchange: Exchange = exchange_objects,
    ) -> AnyPath:
        """Commit a checkpoint; every rank calls it and gets its folder.

        Args:
            step: steps of the loop that are done.
            engine: gives the slices; an engine, or a snapshot of one.
            state: plain values that resuming needs; they are in the manifest.
            exchange: reaches all ranks.

        Raises:
            CheckpointError: on all ranks, when one of them cannot write; older checkpoints stay.
        """
        attempt = exchange(uuid.uuid4().hex[:12])[0]
        written = exchange(_attempt(lambda: self._write_share(step, attempt, engine)))
        problem = _first_problem(written)
        folder = None
        if problem is None and engine.rank == 0:
            manifest = build_manifest(step, attempt, written, engine, state)
            folder = _attempt(lambda: self._commit(step, attempt, manifest))
            problem = _first_problem([folder])
        problem, folder = exchange((problem, folder))[0]
        if problem is not None:
            if engine.rank == 0:
                self.store.abandon(step, attempt)
            raise CheckpointError(
                f"{self.store.folder}: the checkpoint of step {step} was not written: {problem}; "
                f"older ones are untouched, make room or mend the file system and resume"
            )
        assert folder is not None, "rank 0 has committed it"
        return folder

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint on the current lineage, None in a folder without any.

        Every byte is verified. Damaged ones met on the way are set aside with the reason, listed in
        `damaged`, and never deleted. One process calls it, before a run starts.

        Raises:
            CheckpointError: when there are checkpoints, but none is whole.
        """
        for folder in self._candidates():
            checkpoint = self._verify(folder)
            if checkpoint is not None:
                return checkpoint
        broken = sorted(found.folder.name for found in self.survey() if found.state == "damaged")
        if broken:
            raise CheckpointError(
                f"{self.store.folder}: holds checkpoints and none is whole ({', '.join(broken)}); "
                f"restore one, or start afresh in another run folder"
            )
        return None

    def survey(self) -> list[Found]:
        """All that is named as a checkpoint, the newest first; no content is looked at."""
        retired = self._retired()
        return [
            found._replace(state="retired")
            if found.state == "committed" and retired and _attempt_of(found.folder) in retired
            else found
            for found in self.store.found()
        ]

    def best(self) -> Checkpoint | None:
        """The whole checkpoint with the lowest score, None where none has one."""
        folder = self._best(list(self._candidates()))
        return None if folder is None else self._verify(folder)

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
        name = f"{checkpoint.folder.name}.{uuid.uuid4().hex[:12]}.json"
        note = self.store.write_note(name, {"until": time.time() + seconds})
        try:
            yield checkpoint
        finally:
            note.unlink(missing_ok=True)

    def set_damaged_aside(self) -> None:
        """Verify all that is on the lineage; what is damaged is marked as that."""
        for folder in list(self._candidates()):
            self._verify(folder)

    def retire(self, above_step: int, record: dict[str, Any] | None = None) -> list[str]:
        """Take checkpoints later than `above_step` off the lineage by one appended record.

        Args:
            above_step: the last step that stays.
            record: what else belongs to this rewind, such as rows to skip.

        Returns:
            The names that the retired checkpoints had.
        """
        retired = {}
        for folder in self._candidates():
            attempt = _attempt_of(folder)
            if _step_of(folder) > above_step and attempt is not None:
                retired[folder.name] = attempt
        line = {"event": "retire", "above_step": above_step, "checkpoints": retired}
        self.store.append({**line, **(record or {})})
        self._sweep_retired()
        return list(retired)

    def lineage(self) -> list[dict[str, Any]]:
        """All committed records, oldest first."""
        return self.store.records()

    def _write_share(self, step: int, attempt: str, engine: SliceSource) -> FileRecord:
        name = f"rank-{engine.rank:05d}.safetensors"
        return self.store.write_file(
            step, attempt, name, lambda path: save_slices(path, engine.slices())
        )

    def _commit(self, step: int, attempt: str, manifest: dict[str, Any]) -> AnyPath:
        folder = self.store.commit(step, attempt, manifest, self._permit)
        self._verified.add(attempt)
        self._prune(folder)
        return folder

    def _candidates(self) -> Iterator[AnyPath]:
        """What is committed and not retired, newest first."""
        self._sweep_retired()
        yield from (found.folder for found in self.survey() if found.state == "committed")

    def _verify(self, folder: AnyPath) -> Checkpoint | None:
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

    def _set_aside(self, folder: AnyPath, damage: DamagedError) -> None:
        marked = self.store.set_aside(folder, damage.reason)
        self.damaged.append(Damage(marked, str(damage)))
        logger.warning("%s is damaged and set aside (%s)", marked, damage.detail)

    def _prune(self, newest: AnyPath) -> None:
        """Remove what is neither a milestone nor among the last whole ones; then leftovers.

        A run that redoes a step commits it anew: the one before makes room.
        """
        num_kept = 0
        folders = list(self._candidates())
        best = self._best(folders)
        for folder in folders:
            is_kept = self._is_milestone(folder) or folder == best
            if folder != newest and _step_of(folder) == _step_of(newest):
                self.store.remove(folder)
            elif num_kept >= self._keep_last:
                if not is_kept and not self._is_leased(folder):
                    self.store.remove(folder)
            elif self._verify(folder) is not None and not is_kept:
                num_kept += 1
        for found in self.store.found():
            if found.state == "unfinished":
                self.store.remove(found.folder)

    def _best(self, folders: list[AnyPath]) -> AnyPath | None:
        """The one with the lowest score, the latest of equals; None where none has a score."""
        scores = {folder: score for folder in folders if (score := _score_of(folder)) is not None}
        return min(scores, key=lambda folder: scores[folder], default=None)

    def _is_leased(self, folder: AnyPath) -> bool:
        notes = (note for note in self.store.notes() if note.name.startswith(f"{folder.name}."))
        return any(_lease_end(note) > time.time() for note in notes)

    def _is_milestone(self, folder: AnyPath) -> bool:
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
        """Show what is retired, which a crash right after the record may have left undone."""
        names = self._retired()
        for found in self.store.found() if names else ():
            attempt = _attempt_of(found.folder) if found.state == "committed" else None
            if attempt in names:
                self.store.retire(found.folder, attempt)


def _step_of(folder: AnyPath) -> int:
    match = _NAME.match(folder.name)
    return int(match[1]) if match else -1


def _attempt_of(folder: AnyPath) -> str | None:
    try:
        return read_manifest(folder).attempt
    except DamagedError:
        return None


def _score_of(folder: AnyPath) -> float | None:
    try:
        return read_manifest(folder).state.get(SCORE_KEY)
    except DamagedError:
        return None


def _lease_end(note: AnyPath) -> float:
    try:
        return float(json.loads(note.read_text("utf-8"))["until"])
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
