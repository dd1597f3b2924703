"""A training run launched from a terminal: its config, then its figures as they come."""

import math
from typing import TYPE_CHECKING, Protocol

from _driver import on_termination
from _ray import connect

from glm_dist.config import dump_config
from glm_dist.train.settings import PretrainSettings

if TYPE_CHECKING:
    from glm_dist.train.launch import Launched


class Shows(Protocol):
    """What people see of a run: a line of JSON at a time."""

    def show(self, text: str) -> None:
        """Figures of a step."""

    def show_event(self, text: str) -> None:
        """What a step met with."""


def launch_shown(
    settings: PretrainSettings, terminal: Shows, *, shows_config: bool = True
) -> "Launched":
    """Train in the run's folder, which no other driver has meanwhile; SIGTERM saves and stops."""
    from glm_dist.metrics.sinks import METRICS_FILE
    from glm_dist.train.attempt import claim_run_folder
    from glm_dist.train.follow import Follower
    from glm_dist.train.launch import launch
    from glm_dist.train.supervise import ask_to_stop, holding
    from glm_dist.train.worker import EVENTS_FILE

    run_folder = settings.run_path
    claim_run_folder(run_folder, settings)
    with holding(run_folder):
        if shows_config:
            print(dump_config(settings))
        print(f"run folder   {run_folder}", flush=True)
        connect(cpus_needed(settings))
        on_termination(lambda: ask_to_stop(run_folder, "signal"))
        with (
            Follower(run_folder / METRICS_FILE, terminal.show),
            Follower(run_folder / EVENTS_FILE, terminal.show_event),
        ):
            return launch(settings)


def cpus_needed(settings: PretrainSettings) -> int:
    """Logical CPUs of the workers and of the tasks that build their rows."""
    from glm_dist.train.cluster import ROW_TASK_CPUS

    return math.ceil(settings.workers.most * settings.workers.cpus_per_worker) + ROW_TASK_CPUS
