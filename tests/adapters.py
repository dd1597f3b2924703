"""Folders of a base model and of adapters beside it, for tests of several packages."""

import json

import torch

from glm_dist.engine import save_weights
from glm_dist.engine.adapters import hash_model, save_adapter
from glm_dist.model.tuning import target_names


def save_base(folder, model, tokenizer):
    save_weights(folder, model.state_dict())
    config = {"model": model.settings.model_dump(mode="json"), "name": "base"}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(folder)
    return folder


def save_random(folder, base, model, tuning, tokenizer):
    """An adapter whose every weight is drawn."""
    generator = torch.Generator().manual_seed(len(folder.name))
    weights = {}
    for name in target_names(model, tuning.targets):
        outputs, inputs = model.get_submodule(name).weight.shape
        shapes = {"lora_A.default.weight": (tuning.rank, inputs)}
        shapes["lora_B.default.weight"] = (outputs, tuning.rank)
        if tuning.kind == "dora":
            shapes["lora_magnitude_vector.default.weight"] = (outputs,)
        for part, shape in shapes.items():
            weights[f"{name}.{part}"] = 0.2 * torch.randn(shape, generator=generator)
    own = {"folder": str(base), "sha256": hash_model(base)}
    config = {"model": model.settings.model_dump(mode="json"), "name": folder.name}
    save_adapter(folder, weights, config | {"tuning": tuning.model_dump(mode="json"), "base": own})
    tokenizer.save(folder)
