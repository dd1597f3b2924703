"""Makes of a model the one that is trained: with an adapter beside it, or some of it frozen.

It stands apart from the model because names are all that it knows of it.
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from glm_dist.errors import ConfigError
from glm_dist.model.init import stream_of
from glm_dist.model.prefix import PrefixEncoder
from glm_dist.model.settings import ModelSettings
from glm_dist.model.transformer import GLM
from glm_dist.model.tuning_settings import TuningSettings

PREFIX = "prefix_encoder."
HEAD = "score."
_EMBEDDINGS = re.compile(r"(word_embeddings|transformer\.(block_)?position_embeddings)\.")
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.")


def apply_tuning(model: GLM, tuning: TuningSettings) -> GLM:
    """The model with what is trained beside it, and the rest frozen, in place.

    The model has its weights: DoRA begins with the lengths of their rows.

    Raises:
        ConfigError: naming each pattern that matches nothing, or when nothing is left to train.
        DependencyError: when peft is needed and not installed.
    """
    if tuning.is_low_rank:
        from glm_dist.model.low_rank import inject

        inject(model, tuning, target_names(model, tuning.targets))
    elif tuning.kind == "p_tuning":
        tokens = tuning.num_prefix_tokens
        model.prefix_encoder = PrefixEncoder(model.settings, tokens, tuning.prefix_projection)
        _draw_prefix(model.prefix_encoder, model.settings.init_seed)
    if tuning.is_adapter:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_added(name))
    freeze(model, tuning.frozen)
    set_rate_shares(model, tuning.layer_decay)
    return model


def meta_model(settings: ModelSettings, tuning: TuningSettings) -> GLM:
    """The model that a run trains, without memory for its weights; see `apply_tuning`."""
    with torch.device("meta"):
        return apply_tuning(GLM(settings), tuning)


def is_added(name: str) -> bool:
    """Whether a parameter belongs to an adapter, or to the head that is trained with it."""
    return ".lora_" in name or name.startswith((PREFIX, HEAD))


def base_names(model: nn.Module, tuning: TuningSettings) -> frozenset[str]:
    """Parameters of the model that an adapter stands beside; none where there is no adapter."""
    if not tuning.is_adapter:
        return frozenset()
    return frozenset(name for name, _ in model.named_parameters() if not is_added(name))


def target_names(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the linear maps that the patterns choose.

    Raises:
        ConfigError: naming each pattern that chooses none.
    """
    maps = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    ]
    problems = [
        f"tuning.targets: {pattern!r} matches no linear map; {_close_names(pattern, maps)}"
        for pattern in patterns
        if not any(_is_target(name, pattern) for name in maps)
    ]
    if not patterns:
        problems.append("tuning.targets: is empty; name at least one linear map")
    if problems:
        raise ConfigError(problems)
    return [name for name in maps if any(_is_target(name, pattern) for pattern in patterns)]


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


def set_rate_shares(model: GLM, decay: float) -> None:
    """Give every parameter its share of the learning rate, as ELECTRA does (Clark et al. 2020).

    What stands above the layers has all of it, each layer `decay` times what the one above has,
    and the embeddings, whose table gives the words at the end too, the least.
    """
    top = model.settings.num_layers + 1
    for name, parameter in model.named_parameters():
        found = _LAYER.match(name)
        below = top - 1 - int(found[1]) if found else top * bool(_EMBEDDINGS.match(name))
        parameter.rate_share = decay**below  # type: ignore[attr-defined]


def rate_share_of(parameter: Tensor) -> float:
    """Its learning rate as a share of the run's."""
    return getattr(parameter, "rate_share", 1.0)


def num_trained(model: nn.Module) -> int:
    """Elements of the parameters that have a gradient."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _is_target(name: str, pattern: str) -> bool:
    return name.endswith(f".{pattern}") or fnmatchcase(name, pattern)


def _close_names(pattern: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(pattern, names, n=2, cutoff=0.6)
    if close:
        return f"close to it are {', '.join(close)}"
    return f"names are such as {next(iter(names))}"


@torch.no_grad()
def _draw_prefix(encoder: PrefixEncoder, seed: int) -> None:
    """Draw a prefix anew, each parameter from a stream of its own, distributed as torch draws."""
    for name, parameter in encoder.named_parameters():
        if parameter.is_meta:
            continue
        generator, values = stream_of(seed, f"prefix_encoder.{name}"), torch.empty(parameter.shape)
        if name.startswith("embedding."):
            values.normal_(generator=generator)
        else:
            bound = 1 / math.sqrt(encoder.embedding.weight.shape[1])
            values.uniform_(-bound, bound, generator=generator)
        parameter.copy_(values)
