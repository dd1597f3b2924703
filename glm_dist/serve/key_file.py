"""The file of API keys, hashed at rest: keys are made, listed and revoked here.

It stands apart from those who check keys, as the one place that knows the file. A key a line: the
SHA-256 of it in hex, and what it may do as NAME=VALUE, all of it optional. `#` begins a remark.

    9f86d0…  id=search scopes=generate,classify expires=2027-01-31
    60303a…  id=batch requests_per_minute=60 tokens_per_minute=100000 max_running=4
"""

import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from glm_dist.config import Settings
from glm_dist.errors import ConfigError

Scope = Literal["generate", "classify", "embed", "tasks", "metrics"]
SCOPES: tuple[Scope, ...] = ("generate", "classify", "embed", "tasks", "metrics")


def _split(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


class KeyRules(Settings):
    """What a key may do; everything by default."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the key, in hex."""
    id: str = Field("", pattern=r"^[\w.-]{0,64}$")
    """Name in logs and metrics; the beginning of the hash where it has none."""
    scopes: Annotated[tuple[Scope, ...], BeforeValidator(_split)] = SCOPES
    """generate (completions, chat, infill), classify (labels, decisions, scores), embed, tasks,
    metrics; models, tokens and health go with any key."""
    expires: date | None = None
    """The first day, in UTC, on which it is refused."""
    requests_per_minute: int | None = Field(None, ge=1)
    """Requests a minute at each front; as many may come at once after a pause."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Tokens a minute at each front, of prompts and answers."""
    max_running: int | None = Field(None, ge=1)
    """Requests in work at a time at each front."""

    @property
    def name(self) -> str:
        """What it is called by."""
        return self.id or self.sha256[:12]

    @property
    def line(self) -> str:
        """As it stands in the file; what is as by default is left out."""
        given = self.model_dump(mode="json", exclude={"sha256"}, exclude_defaults=True)
        options = {key: ",".join(one) if key == "scopes" else one for key, one in given.items()}
        return " ".join([self.sha256, *(f"{key}={one}" for key, one in options.items())])


def read_rules(path: Path) -> list[KeyRules]:
    """The rules of all keys of a file.

    Raises:
        ConfigError: naming each line that is wrong.
    """
    rules, problems = list[KeyRules](), list[str]()
    for number, line in enumerate(_lines(path), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            rules.append(_read(words))
        except ValueError as error:
            problems += [f"api_keys: line {number} of {path}: {one}" for one in _say(error)]
    if len({rule.sha256 for rule in rules}) < len(rules):
        problems.append(f"api_keys: {path} holds a key twice")
    if problems:
        raise ConfigError(problems)
    return rules


def new_key(**rules: str) -> tuple[str, str]:
    """A key of 256 random bits, which is shown once, and the line of it for the file.

    Raises:
        ConfigError: when a rule is wrong.
    """
    key = f"sk-{secrets.token_urlsafe(32)}"
    words = [hash_of(key), *(f"{name}={value}" for name, value in rules.items())]
    try:
        return key, _read(words).line
    except ValueError as error:
        raise ConfigError(list(_say(error))) from None


def add_key(path: Path, **rules: str) -> tuple[str, KeyRules]:
    """Make a key and put it into the file, which is made where there is none, for its owner alone.

    Returns:
        The key, which stands nowhere else, and its rules.

    Raises:
        ConfigError: when a rule is wrong, or another key has the name.
    """
    known = read_rules(path) if path.exists() else []
    key, line = new_key(**rules)
    made = _read(line.split())
    if any(made.name == other.name for other in known):
        raise ConfigError(f"id: {path} has a key {made.name!r} already; revoke it, or take another")
    _write(path, [*(_lines(path) if path.exists() else []), line])
    return key, made


def revoke_key(path: Path, name: str) -> KeyRules:
    """Take a key out of the file, by its name.

    Raises:
        ConfigError: when there is none of this name, with those that there are.
    """
    rules = {rule.name: rule for rule in read_rules(path)}
    if name not in rules:
        known = ", ".join(rules) or "none"
        raise ConfigError(f"{name}: {path} has no such key; there is {known}")
    gone = rules[name]
    _write(path, [line for line in _lines(path) if line.lower().split()[:1] != [gone.sha256]])
    return gone


def hash_of(key: str) -> str:
    """What the file holds of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _lines(path: Path) -> list[str]:
    try:
        return path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text"
        raise ConfigError(f"api_keys: {path} cannot be read ({reason})") from None


def _write(path: Path, lines: Sequence[str]) -> None:
    """All at once, so that a server that looks meanwhile sees the old file or the new one."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None


def _read(words: Sequence[str]) -> KeyRules:
    digest, *options = words
    pairs = [option.partition("=") for option in options]
    names = [name for name, _, _ in pairs]
    if "sha256" in names or len(set(names)) < len(names):
        raise ValueError("names a rule twice")
    return KeyRules(sha256=digest.lower(), **{name: value for name, _, value in pairs})  # type: ignore[arg-type]


def _say(error: ValueError) -> Iterator[str]:
    """What is wrong, never with a value, which may be a key that should not be there."""
    if not isinstance(error, ValidationError):
        yield str(error)
        return
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name = str(problem["loc"][0])[:32]
        if name == "sha256":
            yield (
                "is no SHA-256 in 64 hex digits; write what `printf %s KEY | sha256sum` prints, "
                "never the key itself"
            )
        elif name in KeyRules.model_fields:
            yield f"{name}: {problem['msg']}"
        else:
            yield f"knows no such rule; there are {', '.join(list(KeyRules.model_fields)[1:])}"
