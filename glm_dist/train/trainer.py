"""Ray Train with what a launch needs of it, so that it starts in half the time.

Its controller reads this module: nothing heavy is imported here.
"""

from collections.abc import Callable
from typing import Any, cast

import ray
from ray._raylet import RAY_NODE_ID_KEY  # type: ignore[attr-defined]  # compiled, without types
from ray.actor import ActorHandle
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.config import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.result import Result


class TrainControllers:
    """An actor that runs Ray Train's controllers, one after another.

    Ray Train starts a process for each, which imports pandas, Ray Data and itself before a rank can
    start. This one stays, so that a launch after a failure waits for its ranks alone.
    """

    async def run(self, parts: dict[str, Any]) -> Result:
        """Start the ranks and watch them to their end; a failure is in the result."""
        controller = TrainController(**parts)
        await controller.run()
        return controller.get_result()


def start_controllers() -> ActorHandle[TrainControllers]:
    """The actor, on this node and with Ray Train's settings from the environment."""
    here = ray.get_runtime_context().get_node_id()
    actor: Any = ray.remote(
        num_cpus=0,
        label_selector={RAY_NODE_ID_KEY: here},
        runtime_env={"env_vars": get_env_vars_to_propagate()},
    )(TrainControllers)
    return cast(ActorHandle[TrainControllers], actor.remote())


class RankTrainer(DataParallelTrainer):
    """Runs a function once a rank, and leaves it to the ranks to find each other.

    `TorchTrainer` does that from its controller, a process that would load torch for nothing else.
    This one's controller runs in an actor that outlives the launch (`start_controllers`), and
    Ctrl-C stays with the job, whose ranks save before they leave. Two more processes are not
    started: one deals datasets, and the ranks bring their streams along (`RowPlan.streams`); the
    other frees what a dead controller had reserved, by asking a dashboard that a Ray started by a
    job has not got (see `launch.py`).
    """

    def __init__(
        self,
        train: Callable[[], None],
        scaling_config: ScalingConfig,
        run_config: RunConfig,
        controllers: ActorHandle[TrainControllers],
    ) -> None:
        super().__init__(
            train,
            backend_config=_SharedDevices(),
            scaling_config=scaling_config,
            run_config=run_config,  # type: ignore[arg-type]  # taken for that of Train V1
        )
        self._controllers = controllers

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        return cast(Result, ray.get(self._controllers.run.remote(parts)))

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
