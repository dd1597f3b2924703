"""The transformer: settings and presets without torch, everything else when first used.

Names are loaded on demand, so that reading a configuration does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from glm_dist.model.presets import PRESETS
from glm_dist.model.settings import HeadSettings, ModelSettings
from glm_dist.model.tuning_settings import TuningSettings

if TYPE_CHECKING:
    from glm_dist.model.batch import Batch, LossOutput
    from glm_dist.model.cache import KVCache
    from glm_dist.model.init import build_model, initialise, initialise_parameter
    from glm_dist.model.transformer import GLM, compile_layers
    from glm_dist.model.weights import load_reference_weights

_HOMES = {
    "Batch": "batch",
    "GLM": "transformer",
    "KVCache": "cache",
    "LossOutput": "batch",
    "build_model": "init",
    "compile_layers": "transformer",
    "initialise": "init",
    "initialise_parameter": "init",
    "load_reference_weights": "weights",
}

__all__ = [
    "PRESETS",
    "Batch",
    "GLM",
    "HeadSettings",
    "KVCache",
    "LossOutput",
    "ModelSettings",
    "TuningSettings",
    "build_model",
    "compile_layers",
    "initialise",
    "initialise_parameter",
    "load_reference_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
