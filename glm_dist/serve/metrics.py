"""Counts and gauges in Prometheus' text form."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from glm_dist.inference import EngineStats
from glm_dist.serve.engine_thread import EngineThread

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_GAUGES: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "glm_running": ("Answers being generated or scored.", lambda s: s.running),
    "glm_waiting": ("Requests that wait.", lambda s: s.waiting),
    "glm_free_blocks": ("Blocks of the cache that are free.", lambda s: s.free_blocks),
    "glm_prompt_tokens": ("Prompt tokens taken in.", lambda s: s.prompt_tokens),
    "glm_cached_tokens": ("Prompt tokens that were there already.", lambda s: s.cached_tokens),
    "glm_generated_tokens": ("Tokens generated.", lambda s: s.generated_tokens),
    "glm_preemptions": ("Answers that gave their blocks back.", lambda s: s.preemptions),
}


class Metrics:
    """What `/metrics` shows of one engine."""

    def __init__(self, engine: EngineThread) -> None:
        self._registry = CollectorRegistry()
        for name, (text, read) in _GAUGES.items():
            gauge = Gauge(name, text, registry=self._registry)
            gauge.set_function(lambda read=read: read(engine.stats))  # type: ignore[misc]
        self._requests = Counter(
            "glm_requests",
            "Requests by route and status.",
            ["path", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "glm_request_seconds",
            "Seconds until a reply began.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._paths: set[str] = set()

    def know(self, paths: set[str]) -> None:
        """Name the routes that have a label of their own."""
        self._paths = paths

    def count(self, path: str, status: int, seconds: float) -> None:
        """Take a request down; paths that do not exist share one label."""
        label = path if path in self._paths and status != 404 else "other"
        self._requests.labels(label, status).inc()
        self._seconds.labels(label).observe(seconds)

    def text(self) -> str:
        """All of it."""
        return generate_latest(self._registry).decode()
