"""When and how an attempt's checkpoints are written: in the background, and a full disk can wait.

None is committed once a later attempt has begun.
"""

import logging
import threading
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from glm_dist.engine import Catalogue, Checkpoint, Engine
from glm_dist.engine.catalogue import Exchange, exchange_objects
from glm_dist.engine.snapshot import SliceSource, Snapshot
from glm_dist.errors import CheckpointError
from glm_dist.train.attempt import Attempt, has_checkpoints, is_superseded
from glm_dist.train.settings import PretrainSettings

logger = logging.getLogger(__name__)


class Saver:
    """Commits one checkpoint at a time; every rank makes the same calls.

    Errors of a save that goes on in the background come with the next call.
    """

    def __init__(
        self,
        run_folder: Path,
        settings: PretrainSettings,
        attempt: Attempt,
        resumed_from: Checkpoint | None,
    ) -> None:
        self._run_folder, self._attempt_number = run_folder, attempt.number
        self._location = settings.checkpoint_location
        self._settings, self._missed = settings.checkpoints, 0
        self._catalogue = Catalogue(
            self._location or run_folder,
            self._settings.keep_last,
            self._settings.milestone_every_steps,
            permit=self._permit,
        )
        if resumed_from is not None:
            self._catalogue.trust(resumed_from.attempt)  # verified when it was decided on
        self._exchange = _exchange_apart() if self._settings.asynchronous else exchange_objects
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None

    def save(self, step: int, engine: Engine, state: dict[str, Any]) -> None:
        """Begin to commit a checkpoint, or commit it where nothing is done in the background.

        Raises:
            CheckpointError: when a later attempt has taken the run over, or too many in a row were
                missed.
        """
        self.finish()
        if not self._settings.asynchronous:
            self._commit(step, engine, state)
            self.finish()
            return
        arguments = (step, Snapshot.of(engine), state)
        self._thread = threading.Thread(target=self._commit, args=arguments, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for what is being written; see `save` for errors."""
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is None:
            return
        if self._taken_over() or self._missed > self._settings.max_missed:
            raise error
        logger.warning("%s; training goes on without it", error)

    def _commit(self, step: int, source: SliceSource, state: dict[str, Any]) -> None:
        try:
            self._catalogue.save(step, source, state, self._exchange)
        except CheckpointError as error:
            self._error = error
            self._missed += 1
        except Exception as error:  # any: in the background nobody else would hear of it
            self._error = CheckpointError(f"the checkpoint of step {step} was not written: {error}")
            self._missed += 1
        else:
            self._missed = 0

    def _permit(self) -> None:
        if taken := self._taken_over():
            raise CheckpointError(taken)

    def _taken_over(self) -> str | None:
        """Who this attempt has lost the run or its checkpoints to, None while it has them."""
        if is_superseded(self._run_folder, self._attempt_number):
            return "a later attempt has taken this run over"
        if self._location is not None and not has_checkpoints(self._run_folder, self._location):
            return f"another run has taken {self._location} over"
        return None


def _exchange_apart() -> Exchange:
    """An exchange that does not meet the collectives of training."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return exchange_objects
    return partial(exchange_objects, group=dist.new_group(backend="gloo"))
