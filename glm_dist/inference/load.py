"""A finished model folder, opened for inference."""

from collections.abc import Mapping
from pathlib import Path

import torch

from glm_dist.engine.adapters import MergedWeights, open_weights
from glm_dist.engine.folders import model_folder, read_model_config
from glm_dist.inference.adapters import open_adapters
from glm_dist.inference.engine import Engine
from glm_dist.inference.precision import check_memory, compute_dtype
from glm_dist.inference.settings import EngineLimits
from glm_dist.model import GLM
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
        ModelError: when there is no finished model.
        ModelError: when it does not fit into memory, before any of it is read, or an adapter
            belongs to another model.
    """
    limits, device = limits or EngineLimits(), torch.device(device)
    folder, base = model_folder(Path(folder).expanduser()), None if base is None else Path(base)
    settings, _ = read_model_config(folder)
    stored = open_weights(folder, base)[FINAL_NORM].dtype
    check_memory(settings, limits, stored, device)
    beside = open_adapters(adapters or {}, folder)
    model = read_model(folder, base, compute_dtype(limits.dtype, stored, device))
    return Engine(model.to(device), Tokenizer.load(folder), limits, beside)


def check_fits(folder: str | Path, limits: EngineLimits, device: torch.device | str) -> int:
    """The bytes of an engine that would fit, by what its model's files say of themselves.

    Raises:
        ModelError: when there is no finished model.
        ModelError: when it does not fit.
    """
    folder = model_folder(Path(folder).expanduser())
    stored = open_weights(folder, None)[FINAL_NORM].dtype
    return check_memory(read_model_config(folder)[0], limits, stored, torch.device(device))


def load_model(folder: str | Path, base: str | Path | None = None) -> tuple[GLM, Tokenizer]:
    """Model and tokenizer of a model folder, or of a run folder that holds one under `model/`.

    An adapter comes with the model it was trained beside; `base` says where that lies now, if not
    where it was.

    Raises:
        ModelError: when there is no finished model.
    """
    folder = model_folder(Path(folder).expanduser())
    return read_model(folder, None if base is None else Path(base)), Tokenizer.load(folder)


def read_model(folder: Path, base: Path | None = None, dtype: torch.dtype = torch.float32) -> GLM:
    """The model of a model folder, which may have come without a tokenizer of ours.

    Raises:
        ModelError: when there is no finished model.
        ModelError: when an adapter's base is gone or another one.
    """
    settings, _ = read_model_config(folder)
    weights = open_weights(folder, base)
    with torch.device("meta"):
        model = GLM(settings)
    weights.check({name: tuple(weight.shape) for name, weight in model.state_dict().items()})
    # They become the model's own, which has no memory for others yet.
    typed = {name: weights[name].to(dtype) for name in weights.shapes}
    model.load_state_dict(typed, assign=True)
    prefix = weights.adapter.prefix if isinstance(weights, MergedWeights) else None
    if prefix is not None:
        model.prefix_encoder = PrefixEncoder(settings, len(prefix))
        model.prefix_encoder.load_state_dict({"embedding.weight": prefix})
    return model.eval()
