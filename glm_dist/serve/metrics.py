"""Counts and gauges in Prometheus' text form."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from glm_dist.inference import EngineStats
from glm_dist.serve.engine_thread import AnyEngine

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_Read = Callable[[EngineStats], float]
_GAUGES: dict[str, tuple[str, _Read]] = {
    "glm_running": ("Answers being generated or scored.", lambda s: s.running),
    "glm_waiting": ("Requests that wait.", lambda s: s.waiting),
    "glm_free_blocks": ("Blocks of the cache that are free.", lambda s: s.free_blocks),
}
_COUNTERS: dict[str, tuple[str, _Read]] = {
    "glm_prompt_tokens": ("Prompt tokens taken in.", lambda s: s.prompt_tokens),
    "glm_cached_tokens": ("Prompt tokens that were there already.", lambda s: s.cached_tokens),
    "glm_generated_tokens": ("Tokens generated.", lambda s: s.generated_tokens),
    "glm_preemptions": ("Answers that gave their blocks back.", lambda s: s.preemptions),
}


class _Engines(Collector):
    """What the engines say of themselves, by model."""

    def __init__(self, engines: Mapping[str, AnyEngine]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        """All series, as they are now."""
        stats = {name: engine.stats for name, engine in self._engines.items()}
        for family, described in (
            (GaugeMetricFamily, _GAUGES),
            (CounterMetricFamily, _COUNTERS),
        ):
            for name, (text, read) in described.items():
                metric = family(name, text, labels=["model"])
                for model, one in stats.items():
                    metric.add_metric([model], read(one))
                yield metric


class Metrics:
    """What `/metrics` shows."""

    def __init__(self, engines: Mapping[str, AnyEngine]) -> None:
        """Args: the engine of each model, by the model's name."""
        self._registry = CollectorRegistry()
        self._registry.register(_Engines(engines))
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
