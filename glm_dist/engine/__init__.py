"""Training engines: DeepSpeed ZeRO and its plain torch twin, and the checkpoints both write.

Names are loaded on demand, so that reading a configuration waits neither for torch nor DeepSpeed.
"""

import importlib
from typing import TYPE_CHECKING, Any

from glm_dist.engine.settings import EngineSettings

if TYPE_CHECKING:
    from glm_dist.engine.build import build_engine
    from glm_dist.engine.catalogue import Catalogue
    from glm_dist.engine.checkpoint import Checkpoint, load_checkpoint
    from glm_dist.engine.interface import Engine, Slice, StepHealth
    from glm_dist.engine.weights import load_weights, save_weights

_HOMES = {
    "Catalogue": "catalogue",
    "Checkpoint": "checkpoint",
    "Engine": "interface",
    "Slice": "interface",
    "StepHealth": "interface",
    "build_engine": "build",
    "load_checkpoint": "checkpoint",
    "load_weights": "weights",
    "save_weights": "weights",
}

__all__ = [
    "Catalogue",
    "Checkpoint",
    "Engine",
    "EngineSettings",
    "Slice",
    "StepHealth",
    "build_engine",
    "load_checkpoint",
    "load_weights",
    "save_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
