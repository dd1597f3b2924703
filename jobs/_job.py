"""What every job shares: the command line, the log format, and errors without a stack trace.

Jobs are programs, not library: they may print. `python jobs/NAME.py` puts this folder on the path.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic_core import PydanticUndefined

from glm_dist.config import Settings, iter_fields, load_config, output_path
from glm_dist.errors import ConfigError, GlmDistError

S = TypeVar("S", bound=Settings)


def run_job(
    main: Callable[[S, argparse.Namespace], int | None],
    settings_class: type[S],
    *,
    description: str,
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, validate and run `main`.

    Returns:
        The exit code: what `main` returns, 2 for a mistake of the user, 130 for Ctrl-C.
    """
    parser = build_parser(settings_class, description)
    add_flags(parser)
    arguments = parser.parse_intermixed_args(argv)
    quiet()
    try:
        settings = load_config(settings_class, arguments.config, arguments.overrides)
        return main(settings, arguments) or 0
    except ConfigError as error:
        return report(error)
    except GlmDistError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def build_parser(settings_class: type[Settings], description: str) -> argparse.ArgumentParser:
    """A parser whose help lists every setting with its meaning and default."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="settings (override any with key=value):\n" + describe_settings(settings_class),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the settings of this run")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that win over the file"
    )
    return parser


def quiet() -> None:
    """Show our own log lines and the warnings a user can act on; no library chatter."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("glm_dist").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)


def model_path(given: str) -> Path:
    """The folder of a model that a user names; of a checkpoint one is made."""
    folder = output_path(given)
    if not (folder.name.startswith("checkpoint-") and (folder / "manifest.json").exists()):
        return folder
    from glm_dist.train.unpack import unpack

    return unpack(folder)


def report(error: ConfigError) -> int:
    """Say all that is wrong with what the user gave; the exit code for it."""
    print(_numbered(error.problems), file=sys.stderr)
    return 2


def describe_settings(settings_class: type[Settings], but: Sequence[str] = ()) -> str:
    """Every setting with its default and meaning, but for some."""
    lines = []
    for name, field in iter_fields(settings_class):
        if name in but:
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else repr(default)
        lines.append(f"  {name} ({shown})")
        lines.append(f"      {' '.join((field.description or '').split())}")
    return "\n".join(lines)


def _numbered(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return f"error: {problems[0]}"
    return f"{len(problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in problems)
