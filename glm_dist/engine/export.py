"""Finished models to and from Hugging Face folders, one tensor in memory at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_dist.engine.adapters import open_whole
from glm_dist.engine.folders import CONFIG, model_folder, open_weight_folder, read_model_config
from glm_dist.errors import ModelError
from glm_dist.model import ModelSettings, load_reference_weights
from glm_dist.model.head_config import class_suffix
from glm_dist.model.huggingface import (
    FAMILIES,
    PREFIX_FILE,
    config_from_settings,
    our_shapes,
    prefix_config,
    prefix_source,
    to_huggingface,
    without_padding,
)
from glm_dist.model.reference_files import find_reference_files, read_reference_files
from glm_dist.model.weight_files import write_folder
from glm_dist.tasks import TASK_FILE
from glm_dist.tokenizer import JSON_FILE, MODEL_FILE, Tokenizer, find_tokenizer

COMPANIONS = (MODEL_FILE, JSON_FILE, "tokenizer_config.json", "chat_template.jinja", TASK_FILE)
"""What stands beside a model: its tokenizer, and the task it was tuned for."""


def export_model(
    source: Path, output: Path, dtype: torch.dtype | None = None, base: Path | None = None
) -> dict[str, Any]:
    """Write a finished model as a folder that `transformers` opens; its config.json.

    Causal models of GLM-4's block become `glm` or `glm4`. All others get a modelling file of their
    own, for `trust_remote_code=True`. LoRA and DoRA are merged into the model they stand beside.

    Args:
        source: a model folder, or a run folder that holds one under `model/`.
        output: what is made; it must not exist.
        dtype: of the weights; by default as they are.
        base: where the model of an adapter lies now, if not where it was.

    Raises:
        ModelError: when there is no model, an adapter cannot be merged, or the output exists.
    """
    source = model_folder(source)
    settings, name = read_model_config(source)
    weights = open_whole(source, base)
    shapes = our_shapes(settings)
    weights.check(shapes)
    first = weights[next(iter(shapes))].dtype
    stream = ((key, weights[key].to(dtype or first)) for key in shapes)
    tokenizer = Tokenizer.load(source) if find_tokenizer(source) else None
    config, tensors = _as_theirs(settings, dtype or first, stream, _special_ids(tokenizer))
    documents: dict[str, Any] = {
        CONFIG: config,
        "generation_config.json": {"do_sample": False, **_special_ids(tokenizer)},
        "README.md": _card(name, settings, config["model_type"]),
    }
    if config["model_type"] not in FAMILIES:
        documents[PREFIX_FILE] = prefix_source()
    if tokenizer is not None:
        documents |= {tokenizer.FILE: tokenizer.serialized, **tokenizer.to_huggingface()}
    documents |= _companions(source)
    write_folder(output, tensors, documents)
    return config


def import_model(source: Path, output: Path) -> ModelSettings:
    """Write a folder of Hugging Face or of the 2021 reference as one of ours; its settings.

    Raises:
        ModelError: naming what is not computed here, and each tensor that does not fit.
    """
    files = find_reference_files(source)
    if files:
        model = load_reference_weights(read_reference_files(files))
        config = {CONFIG: _own_config(model.settings, source)}
        write_folder(output, iter(model.state_dict().items()), config)
        return model.settings
    settings, _ = read_model_config(source)
    weights, shapes = open_weight_folder(source), our_shapes(settings)
    weights.check(shapes)
    documents: dict[str, Any] = {CONFIG: _own_config(settings, source)}
    stream = ((name, weights[name]) for name in shapes)
    write_folder(output, stream, documents | _companions(source))
    return settings


def _companions(folder: Path) -> dict[str, bytes]:
    """What a folder says of tokenizer and task, as it lies there."""
    names = (name for name in COMPANIONS if (folder / name).exists())
    return {name: (folder / name).read_bytes() for name in names}


def _own_config(settings: ModelSettings, source: Path) -> dict[str, Any]:
    return {"model": settings.model_dump(mode="json"), "name": source.name}


def _as_theirs(
    settings: ModelSettings,
    dtype: torch.dtype,
    stream: Iterator[tuple[str, Tensor]],
    special_ids: dict[str, int],
) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    try:
        config = config_from_settings(settings, dtype, **special_ids)
    except ModelError:
        return prefix_config(settings, dtype, **special_ids), without_padding(stream, settings)
    return config, to_huggingface(stream, settings)


def _special_ids(tokenizer: Tokenizer | None) -> dict[str, int]:
    if tokenizer is None:
        return {}
    special = tokenizer.special
    return {"pad_token_id": special.pad, "eos_token_id": special.eop, "bos_token_id": special.sop}


def _card(name: str, settings: ModelSettings, kind: str) -> str:
    opener = f"AutoModel{class_suffix(settings)}"
    trust = "" if kind in FAMILIES else ", trust_remote_code=True"
    return (
        f"---\nlibrary_name: transformers\ntags: [glm]\n---\n\n# {name}\n\n"
        f"A GLM of {settings.num_parameters:,} parameters, {settings.num_layers} layers of width "
        f"{settings.hidden_size}, vocabulary {settings.vocab_size:,}; "
        f"{'causal' if settings.causal else 'its prompt is seen in both directions'}.\n\n"
        f"```python\nfrom transformers import {opener}, AutoTokenizer\n\n"
        f'model = {opener}.from_pretrained("."{trust})\n'
        'tokenizer = AutoTokenizer.from_pretrained(".")\n```\n'
    )
