"""The application on Ray Serve: fronts that lose nothing before engines that may die.

Serve starts, watches, scales and replaces the processes and brings requests to the fronts. From a
front to the engines they go over the streams of `remote` and `link`. With `front: off` each engine
takes its requests itself.
"""

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

import glm_dist
from glm_dist.serve.app import build_app
from glm_dist.serve.drain import Draining
from glm_dist.serve.engine_thread import EngineThread
from glm_dist.serve.keys import ApiKeys
from glm_dist.serve.link import Address, EngineServer
from glm_dist.serve.opening import check_models, describe, open_engine, weights_key
from glm_dist.serve.remote import RemoteEngines
from glm_dist.serve.scaling import LOAD, LoadPolicy
from glm_dist.serve.settings import HostedModel, ServeSettings
from glm_dist.serve.watch import Watch

logger = logging.getLogger(__name__)
HEALTH_SECONDS = 2.0
"""Between two checks; a replica is given up after three that fail or do not come back."""
HEALTH_TIMEOUT_SECONDS = 5.0
DRAIN_LOOK_SECONDS = 0.5
MEMBERS_SECONDS = 0.5
"""Between two looks for engines that have come."""
MEMBERS_TIMEOUT_SECONDS = 2.0
START_SECONDS = 600.0
"""Longest wait of a front for the first engine of each model."""
MAX_START_RETRIES = 3
FRONT_REQUESTS = 10_000
"""Requests in a front at once; its engines have refused what they have no room for long before."""


class EngineReplica:
    """One engine, asked by fronts."""

    async def __init__(self, hosted: HostedModel) -> None:  # type: ignore[misc]
        self._engine = await asyncio.to_thread(open_engine, hosted)
        self._watch = await watched(self._engine, hosted)
        self._server = EngineServer(self._engine, lambda: self._watch.trouble)
        host = ray.util.get_node_ip_address()
        port, secret = await self._server.open(host)
        name = serve.get_replica_context().replica_id.unique_id
        kind, weights = describe(hosted).kind, weights_key(hosted, self._engine)
        adapters = self._engine.engine.adapters
        repeats = hosted.vllm is None
        self._address = Address(name, host, port, secret, kind, weights, adapters, repeats)

    async def introduce(self) -> tuple[Address, Any]:
        """Where it takes orders, and the actor by which it can be ended."""
        return self._address, ray.get_runtime_context().current_actor

    def check_health(self) -> None:
        """Raise where it has to be replaced."""
        check(self._watch)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """How much it has to do."""
        return {LOAD: load_of(self._engine)}

    async def __del__(self) -> None:
        """Let what is in work end; fronts that have another engine turn to it."""
        await self._server.leave()
        await self._server.close()


@serve.ingress()
class Front:
    """Takes requests, and asks the engines of all models."""

    async def __init__(self, settings: ServeSettings, engines: list[DeploymentHandle]) -> None:  # type: ignore[misc]
        described = [describe(hosted) for hosted in settings.hosted]
        self._pools = [
            RemoteEngines(each.kind, is_causal=each.settings.causal, room=hosted.engine.room)
            for each, hosted in zip(described, settings.hosted, strict=True)
        ]
        self._looking = [
            asyncio.create_task(keep_in_touch(pool, handle))
            for pool, handle in zip(self._pools, engines, strict=True)
        ]
        async with asyncio.timeout(START_SECONDS):
            while any(pool.failure is not None for pool in self._pools):
                await asyncio.sleep(DRAIN_LOOK_SECONDS)
        endpoints = [
            one
            for each, pool in zip(described, self._pools, strict=True)
            for one in each.endpoints(pool, settings.limits)
        ]
        keys = ApiKeys.load(settings.api_keys)
        self._app = Draining(build_app(endpoints, keys, settings.limits))

    def __serve_build_asgi_app__(self) -> Any:
        """What answers."""
        return self._app

    async def drain(self) -> int:
        """Refuse what comes from now on; requests that are still in work."""
        return self._app.drain()

    async def __del__(self) -> None:
        """Hang up."""
        for task in self._looking:
            task.cancel()
        for pool in self._pools:
            pool.close()


@serve.ingress()
class Replica:
    """One engine and its endpoints."""

    async def __init__(self, settings: ServeSettings) -> None:  # type: ignore[misc]
        self._engine = await asyncio.to_thread(open_engine, settings)
        self._watch = await watched(self._engine, settings)
        endpoints = describe(settings).endpoints(self._engine, settings.limits)
        keys = ApiKeys.load(settings.api_keys)
        self._app = Draining(build_app(endpoints, keys, settings.limits))

    def __serve_build_asgi_app__(self) -> Any:
        """What answers, once the model is loaded."""
        return self._app

    async def drain(self) -> int:
        """Refuse what comes from now on; requests that are still in work."""
        return self._app.drain()

    def check_health(self) -> None:
        """Raise where it has to be replaced."""
        check(self._watch)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """How much it has to do."""
        return {LOAD: load_of(self._engine)}


async def watched(engine: EngineThread, hosted: HostedModel) -> Watch:
    """A watch over an engine that has given its first token.

    Raises:
        RuntimeError: when it gives none.
    """
    watch = Watch(engine, hosted.watch)
    await watch.probe()
    check(watch)
    asyncio.get_running_loop().create_task(watch.run(give_up))
    return watch


def check(watch: Watch) -> None:
    """Raise where an engine has to be replaced."""
    if watch.verdict is not None:
        raise RuntimeError(watch.verdict)


def give_up(verdict: str) -> None:
    """End this process: its fronts notice at once, and Serve starts another."""
    logger.error("this engine is ended: %s", verdict)
    os._exit(1)


def load_of(engine: EngineThread) -> float:
    """1 where the slots or the cache are just full, more where answers wait."""
    stats, limits = engine.stats, engine.engine.limits
    slots = (stats.running + stats.waiting) / limits.max_running
    return max(slots, 1 - stats.free_blocks / stats.total_blocks)


async def keep_in_touch(pool: RemoteEngines, handle: DeploymentHandle) -> None:
    """Connect to engines as they come, and end those that say nothing any more."""
    actors: dict[str, Any] = {}
    while True:
        try:
            response = handle.broadcast("introduce")
            found = await response.results_async(
                timeout_s=MEMBERS_TIMEOUT_SECONDS, return_exceptions=True
            )
        except (RayServeException, TimeoutError):
            found = []
        known = [each for each in found if isinstance(each, tuple)]
        actors |= {address.replica: actor for address, actor in known}
        pool.connect([address for address, _ in known])
        for name in pool.patrol():
            logger.error("engine replica %s is ended: it does not answer", name)
            ray.kill(actors[name])
        await asyncio.sleep(MEMBERS_SECONDS)


def build(settings: ServeSettings) -> Application:
    """The application, for `serve.run` and, by its import path, for `serve deploy`.

    Raises:
        ConfigError: when a model is not finished, two have one name, or keys cannot be read.
    """
    names = check_models(settings)
    ApiKeys.load(settings.api_keys)
    if settings.front == "off":
        options = {**engine_options(settings, settings), "max_ongoing_requests": FRONT_REQUESTS}
        return serve.deployment(name="glm", **options)(Replica).bind(settings)
    engines = [
        serve.deployment(name=f"engine-{name}", **engine_options(hosted, settings))(
            EngineReplica
        ).bind(hosted)
        for name, hosted in zip(names, settings.hosted, strict=True)
    ]
    front: Deployment = serve.deployment(
        name="front",
        num_replicas=settings.num_fronts,
        ray_actor_options={"num_cpus": settings.front_cpus},
        max_surge_percent=100,
        **common_options(settings),
    )(Front)
    return front.bind(settings, engines)


def engine_options(hosted: HostedModel, settings: ServeSettings) -> dict[str, Any]:
    """Of a deployment with an engine in each replica."""
    actor: dict[str, Any] = {"num_cpus": hosted.num_threads, "num_gpus": hosted.num_gpus}
    if hosted.vllm is not None:
        python = str(Path(hosted.vllm.python).expanduser().absolute())
        # That environment has vLLM's torch, and this package by its path.
        path = {"PYTHONPATH": str(Path(glm_dist.__file__).parents[1])}
        actor["runtime_env"] = {"py_executable": python, "env_vars": path}
    options: dict[str, Any] = {
        "ray_actor_options": actor,
        "max_surge_percent": hosted.max_surge_percent,
        **common_options(settings),
    }
    if hosted.max_replicas is None:
        return {**options, "num_replicas": hosted.num_replicas}
    policy = AutoscalingPolicy(
        policy_function=LoadPolicy, policy_kwargs={"target": hosted.target_load}
    )
    scaling = AutoscalingConfig(
        min_replicas=hosted.num_replicas,
        max_replicas=hosted.max_replicas,
        look_back_period_s=max(10.1, hosted.upscale_seconds),
        upscale_delay_s=hosted.upscale_seconds,
        downscale_delay_s=hosted.downscale_seconds,
        policy=policy,
    )
    return {**options, "autoscaling_config": scaling}


def common_options(settings: ServeSettings) -> dict[str, Any]:
    """Of every deployment."""
    return {
        "max_ongoing_requests": FRONT_REQUESTS,
        # Engines refuse first, by the rules and in the shape of our own; this is the last bound.
        "max_queued_requests": FRONT_REQUESTS,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=1),
        "health_check_period_s": HEALTH_SECONDS,
        "health_check_timeout_s": HEALTH_TIMEOUT_SECONDS,
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "graceful_shutdown_wait_loop_s": DRAIN_LOOK_SECONDS,
        "max_constructor_retry_count": MAX_START_RETRIES,
        "logging_config": LoggingConfig(log_level="WARNING", enable_access_log=False),
    }
