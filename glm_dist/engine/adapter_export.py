"""Trained adapters for the model that `export_model` makes of their base, to be opened by peft.

It stands apart because transformers' classes of GLM-4 name and part their linear maps otherwise.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glm_dist.engine.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    PROMPT,
    ROOT,
    AdapterFolder,
)
from glm_dist.errors import ModelError
from glm_dist.model.huggingface import (
    FAMILIES,
    config_from_settings,
    output_rows,
    their_names,
)
from glm_dist.model.positions import build_rotary
from glm_dist.model.settings import ModelSettings
from glm_dist.model.weight_files import write_folder


def export_adapter(source: Path, output: Path) -> dict[str, Any]:
    """Write an adapter as peft opens it on the exported base; its adapter_config.json.

    Args:
        source: an adapter's folder.
        output: what is made; it must not exist.

    Raises:
        ModelError: when there is no adapter, no class it could stand beside, or the output exists.
    """
    adapter = AdapterFolder(source)
    tensors = {name: adapter.weights[name] for name in adapter.weights.shapes}
    config = dict(adapter.config) | {"base_model_name_or_path": None}
    if _is_of_transformers(adapter.settings):
        tensors = dict(_as_theirs(adapter, tensors))
        targets = {_their_module(name) for target in adapter.targets for name in _names(target)}
        config |= {"target_modules": sorted(targets)} if targets else {}
        config["task_type"] = config["task_type"] or "CAUSAL_LM"
    elif adapter.prefix is not None:
        raise ModelError(
            f"{source}: was tuned by P-tuning, and the exported class of its model takes no keys "
            f"and values from outside; only models of {' and '.join(FAMILIES)} do"
        )
    write_folder(output, tensors.items(), {ADAPTER_CONFIG: config}, single_file=ADAPTER_FILE)
    return config


def _is_of_transformers(settings: ModelSettings) -> bool:
    try:
        config_from_settings(settings, torch.float32)
    except ModelError:
        return False
    return True


def _names(target: str) -> list[str]:
    """Weights that a map of ours is there: one, or three that share its rows."""
    return their_names(f"{target}.weight")


def _their_module(name: str) -> str:
    return name.removesuffix(".weight")


def _as_theirs(adapter: AdapterFolder, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """A fused map's first matrix goes to each of its parts, the rows of the others are shared."""
    for name, tensor in tensors.items():
        target, dot, part = name.removeprefix(ROOT).rpartition(".lora_")
        if name == PROMPT:
            yield name, _turned(tensor, adapter.settings)
            continue
        if not dot:
            yield name, tensor
            continue
        theirs = _names(target)
        is_first = part.startswith("A.")
        rows = output_rows(theirs, len(tensor), adapter.settings)
        parts = [tensor] * len(theirs) if is_first else tensor.split(rows)
        for their_name, values in zip(theirs, parts, strict=True):
            yield f"{ROOT}{_their_module(their_name)}.lora_{part}", values.clone()


def _turned(prefix: Tensor, settings: ModelSettings) -> Tensor:
    """A prefix for classes that count its P tokens: their text begins at position P, ours at 0.

    Queries are turned by P more there, so the keys are turned by P too.
    """
    num_tokens = len(prefix)
    heads, size = settings.kv_heads, settings.head_size
    layers = prefix.view(num_tokens, settings.num_layers, 2, heads, size).permute(1, 2, 3, 0, 4)
    places = torch.full((1, num_tokens), num_tokens)
    rotary = build_rotary(settings, places, torch.zeros_like(places), prefix.dtype)
    keys, values = layers.unbind(1)
    keys = rotary(lambda query, key, value: key)(keys, keys, values)
    return torch.stack((keys, values), 1).permute(3, 0, 1, 2, 4).reshape(prefix.shape)
