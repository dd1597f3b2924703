"""The application on Ray Serve: replicas of one model, each an engine behind the endpoints."""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from glm_dist.serve.app import build_app
from glm_dist.serve.keys import ApiKeys
from glm_dist.serve.opening import check_model, open_endpoints
from glm_dist.serve.settings import ServeSettings

HEALTH_SECONDS = 5.0
DRAIN_SECONDS = 60.0


@serve.ingress()
class Replica:
    """One engine and its endpoints."""

    def __init__(self, settings: ServeSettings) -> None:
        self._endpoints = open_endpoints(settings)
        keys = ApiKeys.load(settings.api_keys)
        self._app = build_app(self._endpoints, keys, settings.limits)

    def __serve_build_asgi_app__(self) -> Any:
        """What answers, once the model is loaded."""
        return self._app

    def check_health(self) -> None:
        """Raise where the engine has broken down, so that Serve replaces this replica."""
        failure = self._endpoints.engine.failure
        if failure is not None:
            raise RuntimeError("the engine broke down") from failure


def build(settings: ServeSettings) -> Application:
    """The application, for `serve.run` and, by its import path, for `serve deploy`.

    Raises:
        ModelError: when there is no finished model.
        ConfigError: when the keys cannot be read.
    """
    check_model(settings)
    ApiKeys.load(settings.api_keys)
    deployment = serve.deployment(
        name="glm",
        num_replicas=settings.num_replicas,
        # The engine's own queue answers 429 before Serve would make requests wait unseen.
        max_ongoing_requests=settings.engine.max_running + settings.engine.max_waiting,
        ray_actor_options={"num_cpus": settings.num_threads, "num_gpus": settings.num_gpus},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )(Replica)
    return deployment.bind(settings)
