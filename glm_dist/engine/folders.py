"""Folders of finished models, ours and those of Hugging Face: what they say, and their weights.

A folder's `config.json` tells whose layout it is. Weights are read under our names, one tensor at a
time, whatever they are called there.
"""

import json
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from glm_dist.errors import ModelError
from glm_dist.model import ModelSettings, chatglm, huggingface
from glm_dist.model.huggingface import our_shapes
from glm_dist.model.weight_files import RenamedWeights, WeightFolder

CONFIG = "config.json"
Weights: TypeAlias = WeightFolder | RenamedWeights


def model_folder(path: Path) -> Path:
    """The folder of a finished model: this one, or the one that a run left inside it."""
    return path / "model" if (path / "model" / CONFIG).exists() else path


def read_model_config(folder: Path) -> tuple[ModelSettings, str]:
    """Settings and name of a finished model.

    Raises:
        ModelError: when the folder holds none, or one that is not computed here.
    """
    config = read_config(folder)
    if "model_type" in config:
        return _foreign_settings(config), folder.name
    try:
        return ModelSettings(**config["model"]), str(config.get("name", folder.name))
    except (KeyError, TypeError, ValidationError) as error:
        raise ModelError(
            f"{folder / CONFIG}: describes no model of glm_dist ({error}); give the folder of a "
            "run that has ended, its model/, or an export"
        ) from None


def open_weight_folder(folder: Path) -> Weights:
    """The weights of a finished model that is no adapter, under our names.

    Raises:
        ModelError: when there are none, or those of another layout are not all there.
    """
    weights, path = WeightFolder(folder), folder / CONFIG
    config = read_config(folder) if path.exists() else {}
    kind = config.get("model_type")
    if kind in huggingface.FAMILIES:
        return huggingface.renamed(weights, _foreign_settings(config))
    if kind == chatglm.MODEL_TYPE:
        return chatglm.renamed(weights, our_shapes(_foreign_settings(config)))
    return weights


def read_config(folder: Path) -> dict[str, Any]:
    """What `config.json` says.

    Raises:
        ModelError: when it is missing or no JSON object.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / CONFIG}: cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise ModelError(f"{folder / CONFIG}: is no JSON object")
    return config


def _foreign_settings(config: dict[str, Any]) -> ModelSettings:
    kind = config["model_type"]
    if kind == huggingface.PREFIX_TYPE:
        return huggingface.prefix_settings(config)
    if kind == chatglm.MODEL_TYPE:
        return chatglm.settings_from_config(config)
    return huggingface.settings_from_config(config)
