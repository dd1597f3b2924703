"""A finished model folder, opened for inference."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from glm_dist.engine import load_weights
from glm_dist.engine.adapters import (
    ADAPTER_CONFIG,
    AdapterFolder,
    MergedWeights,
    open_weights,
)
from glm_dist.engine.export import model_folder
from glm_dist.errors import CheckpointError
from glm_dist.inference.adapters import open_adapters
from glm_dist.inference.engine import Engine
from glm_dist.inference.precision import check_memory, compute_dtype
from glm_dist.inference.settings import EngineLimits
from glm_dist.model import GLM, ModelSettings
from glm_dist.model.prefix import PrefixEncoder
from glm_dist.tokenizer import Tokenizer

FINAL_NORM = "transformer.final_layernorm.weight"


def open_engine(
    folder: str | Path,
    limits: EngineLimits | None = None,
    *,
    device: torch.device | str = "cpu",
    base: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
) -> Engine:
    """An engine of a finished model, loaded in the precision it computes in.

    Args:
        folder: as `load_model` takes it.
        limits: of the engine.
        device: where it computes.
        base: the model beside an adapter, if it was moved.
        adapters: folders of adapters that were trained beside this model, by what requests call
            them.

    Raises:
        CheckpointError: when there is no finished model.
        ModelError: when it does not fit into memory, before any of it is read, or an adapter
            belongs to another model.
    """
    limits, device = limits or EngineLimits(), torch.device(device)
    folder, base = model_folder(Path(folder).expanduser()), None if base is None else Path(base)
    settings = _read_settings(folder)
    stored = open_weights(folder, base)[FINAL_NORM].dtype
    check_memory(settings, limits, stored, device)
    beside = open_adapters(adapters or {}, folder)
    model = read_model(folder, base, compute_dtype(limits.dtype, stored, device))
    return Engine(model.to(device), Tokenizer.load(folder), limits, beside)


def check_fits(folder: str | Path, limits: EngineLimits, device: torch.device | str) -> int:
    """The bytes of an engine that would fit, by what its model's files say of themselves.

    Raises:
        CheckpointError: when there is no finished model.
        ModelError: when it does not fit.
    """
    folder = model_folder(Path(folder).expanduser())
    stored = open_weights(folder, None)[FINAL_NORM].dtype
    return check_memory(_read_settings(folder), limits, stored, torch.device(device))


def load_model(folder: str | Path, base: str | Path | None = None) -> tuple[GLM, Tokenizer]:
    """Model and tokenizer of a model folder, or of a run folder that holds one under `model/`.

    An adapter comes with the model it was trained beside; `base` says where that lies now, if not
    where it was.

    Raises:
        CheckpointError: when there is no finished model.
    """
    folder = model_folder(Path(folder).expanduser())
    return read_model(folder, None if base is None else Path(base)), Tokenizer.load(folder)


def read_model(folder: Path, base: Path | None = None, dtype: torch.dtype = torch.float32) -> GLM:
    """The model of a model folder, which may have come without a tokenizer of ours.

    Raises:
        CheckpointError: when there is no finished model.
        ModelError: when an adapter's base is gone or another one.
    """
    settings = _read_settings(folder)
    with torch.device("meta"):
        model = GLM(settings)
    if (folder / ADAPTER_CONFIG).exists():
        _load_adapter(model, MergedWeights(AdapterFolder(folder), base), dtype)
    else:
        _assign(model, load_weights(folder), dtype)
    return model.eval()


def _read_settings(folder: Path) -> ModelSettings:
    try:
        config = json.loads((folder / "config.json").read_text())
        return ModelSettings(**config["model"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: holds no finished model ({error}); give the folder of a run that has "
            "ended, or its model/"
        ) from None


def _load_adapter(model: GLM, merged: MergedWeights, dtype: torch.dtype) -> None:
    _assign(model, {name: merged[name] for name in merged.shapes}, dtype)
    prefix = merged.adapter.prefix
    if prefix is not None:
        model.prefix_encoder = PrefixEncoder(model.settings, len(prefix))
        model.prefix_encoder.load_state_dict({"embedding.weight": prefix})


def _assign(model: GLM, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Make these the model's, which has no memory for its own yet."""
    typed = {name: weight.to(dtype) for name, weight in weights.items()}
    model.load_state_dict(typed, assign=True)
