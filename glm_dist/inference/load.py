"""A finished model folder, opened for inference."""

import json
from pathlib import Path

from glm_dist.engine import load_weights
from glm_dist.engine.adapters import ADAPTER_CONFIG, AdapterFolder, MergedWeights
from glm_dist.errors import CheckpointError
from glm_dist.model import GLM, ModelSettings
from glm_dist.model.prefix import PrefixEncoder
from glm_dist.tokenizer import Tokenizer


def load_model(folder: str | Path, base: str | Path | None = None) -> tuple[GLM, Tokenizer]:
    """Model and tokenizer of a model folder, or of a run folder that holds one under `model/`.

    An adapter comes with the model it was trained beside; `base` says where that lies now, if not
    where it was.

    Raises:
        CheckpointError: when there is no finished model.
    """
    folder = Path(folder).expanduser()
    if (folder / "model" / "config.json").exists():
        folder = folder / "model"
    return read_model(folder, None if base is None else Path(base)), Tokenizer.load(folder)


def read_model(folder: Path, base: Path | None = None) -> GLM:
    """The model of a model folder, which may have come without a tokenizer of ours.

    Raises:
        CheckpointError: when there is no finished model.
        ModelError: when an adapter's base is gone or another one.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        settings = ModelSettings(**config["model"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: holds no finished model ({error}); give the folder of a run that has "
            "ended, or its model/"
        ) from None
    model = GLM(settings)
    if (folder / ADAPTER_CONFIG).exists():
        _load_adapter(model, MergedWeights(AdapterFolder(folder), base))
    else:
        model.load_state_dict(load_weights(folder))
    return model.eval()


def _load_adapter(model: GLM, merged: MergedWeights) -> None:
    model.load_state_dict({name: merged[name] for name in merged.shapes})
    prefix = merged.adapter.prefix
    if prefix is not None:
        model.prefix_encoder = PrefixEncoder(model.settings, len(prefix))
        model.prefix_encoder.load_state_dict({"embedding.weight": prefix})
