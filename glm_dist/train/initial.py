"""The weights a run begins with: drawn, or those of another model."""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from glm_dist.config import output_path
from glm_dist.data.shards import TokenDataset
from glm_dist.engine import save_weights
from glm_dist.engine.adapters import hash_model, open_whole, save_adapter
from glm_dist.engine.folders import CONFIG, model_folder, read_model_config
from glm_dist.errors import ModelError
from glm_dist.model import GLM, ModelSettings, build_model
from glm_dist.model.huggingface import our_shapes
from glm_dist.model.initial import (
    check_initial_weights,
    check_vocabulary,
    load_initial_weights,
)
from glm_dist.model.tuning import apply_tuning
from glm_dist.tasks import read_task, save_task
from glm_dist.tokenizer import Tokenizer, find_tokenizer
from glm_dist.train.settings import PretrainSettings

logger = logging.getLogger(__name__)


BASE_MODEL = "base model"
"""Name of the fingerprint of the weights that an adapter stands beside."""


def check_initial(settings: PretrainSettings, tokenizer: Tokenizer) -> None:
    """Compare the model to begin with, where there is one, with the one to be trained.

    Raises:
        ModelError: naming what does not fit.
    """
    if settings.init_from is None:
        return
    folder, there = _found(settings.init_from)
    with_head = there.head.scores_like(settings.model.head)
    shapes = our_shapes(settings.model)
    resized = check_initial_weights(open_whole(folder), shapes, with_head=with_head)
    if resized and settings.tuning.is_adapter:
        name, (found, needed) = next(iter(resized.items()))
        raise ModelError(
            f"init_from: {name} has {found} rows there and {needed} in this run, and tuning.kind "
            f"{settings.tuning.kind} would leave the others untrained; use the model's own sizes "
            "and tokenizer, or tuning.kind: none"
        )
    for name, (found, needed) in resized.items():
        logger.warning("init_from: %s has %d rows there and gets %d", name, found, needed)
    if find_tokenizer(folder):
        check_vocabulary(_pieces(Tokenizer.load(folder)), _pieces(tokenizer))


def build_initial(settings: PretrainSettings, *, is_resumed: bool = False) -> GLM:
    """The model as the run begins; one that is resumed gets what was trained from a checkpoint."""
    model = build_model(settings.model)
    if settings.init_from is not None and (settings.tuning.is_adapter or not is_resumed):
        folder, there = _found(settings.init_from)
        with_head = there.head.scores_like(settings.model.head)
        load_initial_weights(model, open_whole(folder), there.vocab_size, with_head=with_head)
    return apply_tuning(model, settings.tuning)


def base_fingerprint(settings: PretrainSettings) -> dict[str, str]:
    """Under BASE_MODEL the hash of the weights that an adapter is trained beside, or nothing."""
    if settings.init_from is None or not settings.tuning.is_adapter:
        return {}
    return {BASE_MODEL: hash_model(_found(settings.init_from)[0])}


def save_result(
    folder: Path,
    settings: PretrainSettings,
    weights: dict[str, torch.Tensor],
    dataset: TokenDataset,
    fingerprints: dict[str, str],
) -> None:
    """Write what was trained: the whole model, or an adapter that names its base, and its task."""
    tokenizer = dataset.tokenizer
    config: dict[str, Any] = {
        "model": settings.model.model_dump(mode="json"),
        "name": settings.name,
    }
    if settings.tuning.is_adapter and settings.init_from is not None:
        config["tuning"] = settings.tuning.model_dump(mode="json")
        base, _ = _found(settings.init_from)
        config["base"] = {"folder": str(base), "sha256": fingerprints[BASE_MODEL]}
        save_adapter(folder, weights, config, {tokenizer.FILE: tokenizer.serialized})
    else:
        save_weights(folder, weights)
        tokenizer.save(folder)
        (folder / CONFIG).write_text(json.dumps(config, indent=1))
    if "task" in dataset.manifest:
        task = read_task(dataset.manifest["task"], str(dataset.folder))
        save_task(folder, task, settings.rows.sequence_length)


def _found(init_from: str) -> tuple[Path, ModelSettings]:
    """The model's folder and its settings."""
    folder = model_folder(output_path(init_from))
    return folder, read_model_config(folder)[0]


def _pieces(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
