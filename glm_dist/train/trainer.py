"""Ray Train with what a launch needs of it, so that it starts in half the time.

Its controller reads this module: nothing heavy is imported here.
"""

from collections.abc import Callable
from typing import Any

from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2.api.config import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class RankTrainer(DataParallelTrainer):
    """Runs a function once a rank, and leaves it to the ranks to find each other.

    `TorchTrainer` does that from its controller, a process that would load torch for nothing else.
    Two more processes are not started: one deals datasets, and the ranks bring their streams along
    (`RowPlan.streams`); the other frees what a dead controller had reserved, by asking a dashboard
    that a Ray started by a job has not got (see `launch.py`).
    """

    def __init__(
        self, train: Callable[[], None], scaling_config: ScalingConfig, run_config: RunConfig
    ) -> None:
        super().__init__(
            train,
            backend_config=_SharedDevices(),
            scaling_config=scaling_config,
            run_config=run_config,  # type: ignore[arg-type]  # taken for that of Train V1
        )

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if not isinstance(one, unused)]


class _Backend(Backend):
    share_cuda_visible_devices = True
    """A rank sees the devices of its whole node, without which NCCL copies through the host."""


class _SharedDevices(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return _Backend
