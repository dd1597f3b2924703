"""A finished model folder, opened for inference."""

import json
from pathlib import Path

from glm_dist.engine import load_weights
from glm_dist.errors import CheckpointError
from glm_dist.model import GLM, ModelSettings
from glm_dist.tokenizer import Tokenizer


def load_model(folder: str | Path) -> tuple[GLM, Tokenizer]:
    """Model and tokenizer of a model folder, or of a run folder that holds one under `model/`.

    Raises:
        CheckpointError: when there is no finished model.
    """
    folder = Path(folder).expanduser()
    if (folder / "model" / "config.json").exists():
        folder = folder / "model"
    return read_model(folder), Tokenizer.load(folder)


def read_model(folder: Path) -> GLM:
    """The model of a model folder, which may have come without a tokenizer of ours.

    Raises:
        CheckpointError: when there is no finished model.
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
    model.load_state_dict(load_weights(folder))
    return model.eval()
