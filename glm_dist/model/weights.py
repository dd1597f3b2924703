"""Weights under the reference's names, into a model whose shape they tell.

It stands apart from the model because checkpoints come wrapped and prefixed in several ways.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from glm_dist.errors import ModelError
from glm_dist.model.settings import ModelSettings
from glm_dist.model.transformer import GLM

PUBLISHED_HEAD_SIZE = 64  # of every model in GLM_SPEC 2.1's GLM 2021 rows
_ANCHOR = "word_embeddings.weight"
_POSITIONS = "transformer.position_embeddings.weight"
_BLOCK_POSITIONS = "transformer.block_position_embeddings.weight"
_FIRST_MLP = "transformer.layers.0.mlp.dense_h_to_4h.weight"


def load_reference_weights(
    state: Mapping[str, Any], num_heads: int | None = None, **options: Any
) -> GLM:
    """An fp32 GLM with the weights of a reference checkpoint, its shape inferred from them.

    Args:
        state: names to tensors or numpy arrays, plain, under a common prefix (`glm.`), or wrapped
            in a `module` entry as DeepSpeed writes them.
        num_heads: attention heads, which weights do not tell; by default those of 64, as in every
            published model.
        options: further `ModelSettings` fields, such as `hidden_dropout` or a smaller `vocab_size`.

    Raises:
        ModelError: when a weight is missing, unknown or of another shape.
    """
    weights = _plain_names(state)
    settings = infer_settings(weights, num_heads, **options)
    with torch.device("meta"):
        model = GLM(settings)
    _check_fit(weights, model.state_dict())
    model.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def infer_settings(
    weights: Mapping[str, Tensor], num_heads: int | None = None, **options: Any
) -> ModelSettings:
    """The settings of a GLM with these weights under plain reference names."""
    for name in (_ANCHOR, _POSITIONS, _BLOCK_POSITIONS, _FIRST_MLP):
        if name not in weights:
            raise ModelError(f"weight {name} is missing; these are not the weights of a 2021 GLM")
    table_rows, hidden_size = weights[_ANCHOR].shape
    if num_heads is None and hidden_size % PUBLISHED_HEAD_SIZE:
        raise ModelError(
            f"num_heads is not given and hidden size {hidden_size} is no multiple of "
            f"{PUBLISHED_HEAD_SIZE}, the head size of the published models; give num_heads"
        )
    layers = {
        match[1] for name in weights if (match := re.match(r"transformer\.layers\.(\d+)\.", name))
    }
    shape = {
        "preset": None,
        "num_layers": len(layers),
        "hidden_size": hidden_size,
        "num_heads": num_heads or hidden_size // PUBLISHED_HEAD_SIZE,
        "ffn_hidden_size": weights[_FIRST_MLP].shape[0],
        "vocab_size": table_rows,
        "pad_vocab_multiple": table_rows,
        "positions": "learned",
        "max_position_embeddings": weights[_POSITIONS].shape[0] - 1,
    }
    return ModelSettings(**{**shape, **options})


def _plain_names(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Without the wrapper and the prefix; arrays become tensors of their own memory."""
    for wrapper in ("module", "model"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    anchors = [name for name in state if name.endswith(_ANCHOR)]
    if len(anchors) != 1:
        raise ModelError(
            f"{len(anchors)} weights are named …{_ANCHOR}; a reference checkpoint has exactly one"
        )
    prefix = anchors[0].removesuffix(_ANCHOR)
    return {
        name.removeprefix(prefix): torch.tensor(weight)
        if not isinstance(weight, Tensor)
        else weight.detach().clone()
        for name, weight in state.items()
    }


def _check_fit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is unknown" for name in weights.keys() - expected.keys()]
    problems += [
        f"{name} is {list(weights[name].shape)} and should be {list(expected[name].shape)}"
        for name in expected.keys() & weights.keys()
        if weights[name].shape != expected[name].shape
    ]
    if problems:
        raise ModelError(
            "these weights are not those of a 2021 GLM: " + "; ".join(sorted(problems))
        )
