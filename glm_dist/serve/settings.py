"""How a model is served.

They stand apart so that a configuration is checked before torch, Ray or FastAPI are imported.
"""

from pydantic import Field, model_validator

from glm_dist.config import Settings
from glm_dist.inference.settings import EngineLimits
from glm_dist.serve.limits import RequestLimits

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServeSettings(Settings):
    """One model behind one set of endpoints."""

    model: str = "runs/demo"
    """A run's folder or a model's; below GLM_DIST_HOME if relative."""
    name: str | None = None
    """What clients call it; by default the name in its config."""
    host: str = "127.0.0.1"
    """Address to listen at; beyond this machine only with keys."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen at."""
    api_keys: str | None = None
    """File with a line for each API key: its SHA-256 in hex, and what it may do; null: no key is
    asked for."""
    num_replicas: int = Field(1, ge=1)
    """Engines, each with a copy of the model, when served by Ray Serve."""
    num_threads: int = Field(1, ge=1)
    """Threads of torch in each engine, and logical CPUs that it reserves."""
    num_gpus: float = Field(0, ge=0)
    """GPUs that each engine reserves; 0 serves on the processor."""
    engine: EngineLimits = EngineLimits()
    limits: RequestLimits = RequestLimits()

    @model_validator(mode="after")
    def _check(self) -> "ServeSettings":
        if self.host not in LOOPBACK and self.api_keys is None:
            raise ValueError(
                f"host: got {self.host!r} without api_keys; everyone who reaches this machine "
                "could use the model: give a file of keys, or listen at 127.0.0.1"
            )
        return self


__all__ = ["LOOPBACK", "RequestLimits", "ServeSettings"]
