"""Who may ask: keys compared in constant time by their hashes, each with what it may do.

A file that changes is read again, so that a key that is revoked is refused within a second.
"""

import hmac
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from glm_dist.errors import ConfigError
from glm_dist.serve.errors import ApiError
from glm_dist.serve.key_file import SCOPES, KeyRules, Scope, hash_of, read_rules
from glm_dist.serve.quotas import Budget

logger = logging.getLogger(__name__)
LOOK_SECONDS = 0.5
"""Between two looks at the file."""


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


class ApiKeys:
    """Who may ask; with no file everyone may."""

    def __init__(self, rules: Sequence[KeyRules] | None) -> None:
        self._anyone = Caller()
        self._callers = None if rules is None else {rule: _caller(rule) for rule in rules}
        self._path: Path | None = None
        self._stamp: tuple[int, ...] = ()
        self._looked = time.monotonic()

    @classmethod
    def load(cls, path: str | None) -> "ApiKeys":
        """Read a file of keys; everyone may ask where there is none.

        Raises:
            ConfigError: naming each line that is wrong.
        """
        if path is None:
            return cls(None)
        file = Path(path).expanduser()
        rules = read_rules(file)
        if not rules:
            raise ConfigError(f"api_keys: {path} holds no key")
        keys = cls(rules)
        keys._path, keys._stamp = file, _stamp(file)
        return keys

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return self._callers is None

    def check(self, authorization: str | None) -> Caller:
        """Who asks.

        Raises:
            ApiError: 401 where the key is missing, unknown or expired; which, it does not say.
        """
        if self._callers is None:
            return self._anyone
        self._look()
        scheme, _, given = (authorization or "").partition(" ")
        digest = hash_of(given.strip())
        # Every key is looked at, whichever fits.
        fitting = [rule for rule in self._callers if hmac.compare_digest(digest, rule.sha256)]
        today = datetime.now(UTC).date()
        if scheme.lower() == "bearer" and fitting:
            [rule] = fitting
            if rule.expires is None or today < rule.expires:
                return self._callers[rule]
        raise ApiError(
            401,
            "the API key is missing or unknown; send `Authorization: Bearer KEY`",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )

    def _look(self) -> None:
        """Take up what has changed in the file; keys that stay as they are keep their budgets."""
        now = time.monotonic()
        if self._path is None or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            rules = read_rules(self._path)
        except ConfigError as error:
            logger.error("%s; the keys read before stay", error)
            return
        known = self._callers or {}
        self._callers = {rule: known.get(rule) or _caller(rule) for rule in rules}


def _caller(rules: KeyRules) -> Caller:
    budget = Budget(rules.requests_per_minute, rules.tokens_per_minute, rules.max_running)
    return Caller(rules.name, rules.scopes, budget)


def _stamp(path: Path) -> tuple[int, ...]:
    """Another one when the file has changed; none where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
