"""API keys: hashed at rest, compared in constant time, each with what it may do.

A file of keys has a key a line: the SHA-256 of it in hex, and what it may do as NAME=VALUE, all of
it optional. `#` begins a remark. `new_key` makes a key and its line.

    9f86d0…  id=search scopes=generate,classify expires=2027-01-31
    60303a…  id=batch requests_per_minute=60 tokens_per_minute=100000 max_running=4
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from glm_dist.config import Settings
from glm_dist.errors import ConfigError
from glm_dist.serve.errors import ApiError
from glm_dist.serve.quotas import Budget

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


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    id: str = ""
    """A name that is no secret; "" where no key is needed."""
    scopes: tuple[Scope, ...] = SCOPES
    budget: Budget = field(default_factory=Budget)

    def check_scope(self, scope: Scope | None) -> None:
        """Refuse what this key is not for.

        Raises:
            ApiError: 403.
        """
        if scope is not None and scope not in self.scopes:
            raise ApiError(
                403,
                f"this key may not {scope}; it is for {', '.join(self.scopes)}",
                code="insufficient_permissions",
            )


@dataclass(frozen=True)
class _Key:
    digest: bytes
    expires: date | None
    caller: Caller


class ApiKeys:
    """Who may ask; with no file everyone may."""

    def __init__(self, rules: Sequence[KeyRules] | None) -> None:
        self._anyone = Caller()
        self._keys = None if rules is None else [_key(rule) for rule in rules]

    @classmethod
    def load(cls, path: str | None) -> "ApiKeys":
        """Read a file of keys; everyone may ask where there is none.

        Raises:
            ConfigError: naming each line that is wrong.
        """
        if path is None:
            return cls(None)
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"api_keys: {path} cannot be read ({error.strerror})") from None
        rules, problems = list[KeyRules](), list[str]()
        for number, line in enumerate(lines, start=1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                rules.append(_read(words))
            except ValueError as error:
                problems += [f"api_keys: line {number} of {path}: {one}" for one in _say(error)]
        if len({rule.sha256 for rule in rules}) < len(rules):
            problems.append(f"api_keys: {path} holds a key twice")
        if problems or not rules:
            raise ConfigError(problems or [f"api_keys: {path} holds no key"])
        return cls(rules)

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return self._keys is None

    def check(self, authorization: str | None) -> Caller:
        """Who asks.

        Raises:
            ApiError: 401 where the key is missing, unknown or expired; which, it does not say.
        """
        if self._keys is None:
            return self._anyone
        scheme, _, given = (authorization or "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        # Every key is looked at, whichever fits.
        fitting = [key for key in self._keys if hmac.compare_digest(digest, key.digest)]
        today = datetime.now(UTC).date()
        if scheme.lower() == "bearer" and fitting:
            [key] = fitting
            if key.expires is None or today < key.expires:
                return key.caller
        raise ApiError(
            401,
            "the API key is missing or unknown; send `Authorization: Bearer KEY`",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )


def new_key(**rules: str) -> tuple[str, str]:
    """A key of 256 random bits, which is shown once, and the line of it for the file.

    Raises:
        ConfigError: when a rule is wrong.
    """
    key = f"sk-{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    words = [digest, *(f"{name}={value}" for name, value in rules.items())]
    try:
        _read(words)
    except ValueError as error:
        raise ConfigError(list(_say(error))) from None
    return key, " ".join(words)


def _key(rules: KeyRules) -> _Key:
    name = rules.id or rules.sha256[:12]
    budget = Budget(rules.requests_per_minute, rules.tokens_per_minute, rules.max_running)
    return _Key(bytes.fromhex(rules.sha256), rules.expires, Caller(name, rules.scopes, budget))


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
