"""Makes of a model the one that is trained: some of its parameters frozen.

It stands apart from the model because names are all that it knows of it.
"""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from glm_dist.errors import ConfigError
from glm_dist.model.settings import ModelSettings
from glm_dist.model.transformer import GLM
from glm_dist.model.tuning_settings import TuningSettings


def apply_tuning(model: GLM, tuning: TuningSettings) -> GLM:
    """The model with what is not trained frozen, in place.

    Raises:
        ConfigError: naming each pattern that matches nothing, or when nothing is left to train.
    """
    freeze(model, tuning.frozen)
    return model


def meta_model(settings: ModelSettings, tuning: TuningSettings) -> GLM:
    """The model that a run trains, without memory for its weights; see `apply_tuning`."""
    with torch.device("meta"):
        return apply_tuning(GLM(settings), tuning)


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let the parameters of these names have no gradient.

    Raises:
        ConfigError: naming each pattern that matches nothing, or when nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    problems = [
        f"tuning.frozen: {pattern!r} matches no parameter; {_close_names(pattern, names)}"
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        problems.append(
            f"tuning.frozen: {', '.join(map(repr, patterns))} leave nothing to train; take one away"
        )
    if problems:
        raise ConfigError(problems)


def num_trained(model: nn.Module) -> int:
    """Elements of the parameters that have a gradient."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _close_names(pattern: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(pattern, names, n=2, cutoff=0.6)
    if close:
        return f"close to it are {', '.join(close)}"
    return f"names are such as {next(iter(names))}"
