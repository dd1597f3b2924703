"""Joining the cluster a job finds, or starting Ray on this machine."""

import logging
import os
from typing import Any

import ray

from glm_dist.errors import LaunchError


def connect(num_cpus: int | None) -> None:
    """Join the cluster named by RAY_ADDRESS or running here, else start a local Ray.

    A Ray started here has token authentication, its dashboard on loopback, and `num_cpus` logical
    CPUs (those of the machine if None).
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if ray.is_initialized():
        return
    try:
        ray.init(address="auto", **options)
        return
    except ConnectionError:
        if os.environ.get("RAY_ADDRESS"):
            raise LaunchError(
                f"RAY_ADDRESS is {os.environ['RAY_ADDRESS']}, and no Ray answers there; start it "
                "or unset RAY_ADDRESS"
            ) from None
    ray.init(num_cpus=num_cpus, dashboard_host="127.0.0.1", include_dashboard=False, **options)
