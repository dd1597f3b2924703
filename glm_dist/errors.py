"""The exceptions of glm_dist, one small tree.

They stand apart so that every layer can raise them and a job can catch the root: what derives
from `GlmDistError` is meant for the user and is printed without a stack trace. The message says the
setting or file, the value got, the rule and the remedy.
"""

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType


class GlmDistError(Exception):
    """Root of all errors a user can cause and mend."""


class ConfigError(GlmDistError):
    """A configuration is wrong; `problems` lists everything found, not only the first."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str]]]:
        return ConfigError, (self.problems,)


class DataError(GlmDistError):
    """Input text, a shard, a manifest or a row table is missing, damaged or of another run."""


class TokenizerError(GlmDistError):
    """A tokenizer cannot be trained, read, or is not the one its dataset was made with."""


class ModelError(GlmDistError):
    """Weights or inputs do not fit the model."""


class CheckpointError(GlmDistError):
    """A checkpoint or run folder is missing, damaged or belongs to another run."""


class LaunchError(GlmDistError):
    """The cluster cannot run what was asked for."""


class StepFailedError(GlmDistError):
    """A rank raised in a step; the message names step, rows and what was raised."""


class DependencyError(GlmDistError):
    """An optional package is not installed."""


def import_optional(name: str, extra: str) -> ModuleType:
    """The module of a package that only the extra `extra` installs.

    Raises:
        DependencyError: naming the package and the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise DependencyError(
            f"{package} is needed for this and not installed; pip install 'glm-dist[{extra}]'"
        ) from None


class RequestError(ModelError):
    """A request cannot be answered; `param` names the field, `code` is for programs."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        self.param, self.code = param, code
        super().__init__(message)

    def __reduce__(self) -> tuple[Callable[..., "RequestError"], tuple[str]]:
        return partial(RequestError, param=self.param, code=self.code), (str(self),)
