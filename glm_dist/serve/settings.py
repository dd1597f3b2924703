"""How a model is served.

They stand apart so that a configuration is checked before torch, Ray or FastAPI are imported.
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from glm_dist.config import Settings
from glm_dist.inference.settings import EngineLimits
from glm_dist.serve.limits import RequestLimits

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class WatchSettings(Settings):
    """When an engine counts as unable to answer."""

    probe_seconds: float = Field(10.0, gt=0)
    """After so long without a token an engine is asked for one."""
    unready_seconds: float = Field(8.0, gt=0)
    """A step, or a probe, that takes longer makes an engine not ready: requests go elsewhere."""
    wedged_seconds: float = Field(20.0, gt=0)
    """A step that takes longer never ends: the engine is ended and another one started. Raise both
    where the longest prompt takes longer on this hardware."""


class ServedEngine(EngineLimits):
    """Sizes of an engine that serves."""

    max_waiting: int = Field(256, ge=1)
    """Answers that may wait in each engine; for one more the client is told to come back (429)."""

    @property
    def room(self) -> int:
        """Answers that are in work or wait at most."""
        return self.max_running + self.max_waiting


class VllmSettings(Settings):
    """vLLM in place of our own engine, for an exported causal model of GLM-4's block."""

    python: str
    """The interpreter of an environment with vLLM, Ray of our release and what
    cluster/serving-vllm.txt names; the same on every node."""
    options: dict[str, Any] = {}
    """Arguments of vLLM's `EngineArgs`, such as gpu_memory_utilization or tensor_parallel_size."""


class HostedModel(Settings):
    """One model, and the engines that answer with it."""

    model: str = "runs/demo"
    """A run's folder or a model's; below GLM_DIST_HOME if relative."""
    name: str | None = None
    """What clients call it; by default the name in its config."""
    num_replicas: int = Field(1, ge=1)
    """Engines, each with a copy of the model, when served by Ray Serve; the fewest of them where
    max_replicas is given."""
    max_replicas: int | None = Field(None, ge=1)
    """The most engines; between the two their number follows the load. null: as num_replicas."""
    target_load: float = Field(0.8, gt=0)
    """The load that the number of engines aims at; 1 is an engine whose slots, or whose cache, are
    just full, and answers that wait count too."""
    upscale_seconds: float = Field(5.0, ge=0)
    """So long the load is too high before engines are added."""
    downscale_seconds: float = Field(60.0, ge=0)
    """So long the load is low before engines are taken away, once they have nothing in work."""
    max_surge_percent: int = Field(100, ge=0, le=100)
    """Of the engines, so many new ones may start before old ones end in an update; with 0 old ones
    end first, which takes no more room and leaves fewer engines meanwhile."""
    num_threads: int = Field(1, ge=1)
    """Threads of torch in each engine, and logical CPUs that it reserves."""
    num_gpus: float = Field(0, ge=0)
    """GPUs that each engine reserves; 0 serves on the processor."""
    adapters: dict[str, str] = {}
    """Low-rank adapters that were trained beside this model and answer in its engines: folders by
    the names that requests give as their model."""
    engine: ServedEngine = ServedEngine()
    vllm: VllmSettings | None = None
    """null: our own engine. Else vLLM answers behind the same endpoints what it can: texts gone on
    with, chats, scores. A stream whose engine dies ends with an error."""
    watch: WatchSettings = WatchSettings()

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(
                f"max_replicas: got {self.max_replicas}, less than num_replicas, which is "
                f"{self.num_replicas}; give at least as many"
            )
        if self.vllm is not None and self.adapters:
            raise ValueError(
                f"vllm: got {len(self.adapters)} adapters, which our own engine alone computes; "
                "leave adapters or vllm out"
            )
        if self.vllm is not None and self.engine.dtype == "int8":
            raise ValueError(
                "vllm: got engine.dtype int8, which is our own engine's; give vLLM's quantization "
                "in vllm.options"
            )
        return self


class ServeSettings(HostedModel):
    """An application: one model or several behind one set of endpoints."""

    models: tuple[HostedModel, ...] = ()
    """More models in the same application, each with these settings of its own; a request's `model`
    says which one answers."""
    host: str = "127.0.0.1"
    """Address to listen at; beyond this machine only with keys."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen at."""
    api_keys: str | None = None
    """File with a line for each API key: its SHA-256 in hex, and what it may do; null: no key is
    asked for. Each front counts what a key has used on its own, so that with several a key has its
    quota at each of them."""
    front: Literal["on", "off"] = "on"
    """on: processes of their own take the requests and ask the engines, so that an engine can die
    and none is lost. off: each engine takes requests itself, the shortest way."""
    num_fronts: int = Field(1, ge=1)
    """Such processes."""
    front_cpus: float = Field(0.0, ge=0)
    """CPUs that each of them asks of Ray; above 0 none is put on a node that offers no CPUs, as a
    head does that is to be lost without a request."""
    proxy: Literal["ray", "haproxy"] = "ray"
    """Who takes connections and passes them to fronts, in a Ray that is started here: Serve's own
    proxy, or the HAProxy that comes with Ray on Linux, which adds some ten milliseconds less. Where
    no front can be reached HAProxy answers a plain 500."""
    drain_seconds: float = Field(60.0, gt=0)
    """What is in work has so long to end when the application, or an engine, is asked to stop."""
    limits: RequestLimits = RequestLimits()

    @property
    def hosted(self) -> tuple[HostedModel, ...]:
        """All models, this one first."""
        own = {name: getattr(self, name) for name in HostedModel.model_fields}
        return (HostedModel(**own), *self.models)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.host not in LOOPBACK and self.api_keys is None:
            raise ValueError(
                f"host: got {self.host!r} without api_keys; everyone who reaches this machine "
                "could use the model: give a file of keys, or listen at 127.0.0.1"
            )
        if self.front == "off" and self.vllm is not None:
            raise ValueError(
                "front: got 'off' with vllm, whose environment holds no endpoints; switch it on"
            )
        if self.front == "off" and self.models:
            raise ValueError(
                f"front: got 'off' with {len(self.models)} more models; an engine that takes its "
                "requests itself has one: leave models out, or switch the front on"
            )
        return self
