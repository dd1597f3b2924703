"""Joining the cluster a job finds, or starting Ray on this machine."""

import logging
import os
import socket
from typing import Any

import ray
from ray._private.utils import read_ray_address

from glm_dist.errors import LaunchError

logger = logging.getLogger("glm_dist.jobs")

CONNECT_SECONDS = 5


def connect(num_cpus: int | None) -> None:
    """Join the cluster named by RAY_ADDRESS or running here, else start a local Ray.

    A Ray started here has token authentication, its dashboard on loopback, and `num_cpus` logical
    CPUs (those of the machine if None).
    """
    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    named = os.environ.get("RAY_ADDRESS", "auto")
    address = read_ray_address() if named == "auto" else named
    if address and is_reachable(address):
        try:
            ray.init(address=address, **options)
            return
        except ConnectionError:
            logger.warning("something listens at %s, but it is no Ray of this release", address)
    if named != "auto":
        raise LaunchError(f"RAY_ADDRESS is {address}, and no Ray answers there; start or unset it")
    ray.init(
        address="local",
        num_cpus=num_cpus,
        dashboard_host="127.0.0.1",
        include_dashboard=False,
        **options,
    )


def found_address() -> str | None:
    """Of the cluster that a job joins; None where it starts a Ray of its own."""
    named = os.environ.get("RAY_ADDRESS", "auto")
    address = read_ray_address() if named == "auto" else named
    return address if address and is_reachable(address) else None


def is_reachable(address: str) -> bool:
    """Whether something listens there; a Ray that was killed leaves its address behind."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False
