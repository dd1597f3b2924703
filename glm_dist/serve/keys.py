"""API keys: hashed at rest, compared in constant time."""

import hashlib
import hmac
from pathlib import Path

from glm_dist.errors import ConfigError
from glm_dist.serve.errors import ApiError

_HEX_DIGITS = 64


class ApiKeys:
    """Who may ask; with no file everyone may."""

    def __init__(self, digests: list[bytes] | None) -> None:
        self._digests = digests

    @classmethod
    def load(cls, path: str | None) -> "ApiKeys":
        """Read a file with the SHA-256 of a key a line, in hex.

        Raises:
            ConfigError: naming each line that is none.
        """
        if path is None:
            return cls(None)
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").split()
        except OSError as error:
            raise ConfigError(f"api_keys: {path} cannot be read ({error.strerror})") from None
        problems = [
            f"api_keys: line {number} of {path} is no SHA-256 in {_HEX_DIGITS} hex digits; write "
            "what `printf %s KEY | sha256sum` prints, never the key itself"
            for number, line in enumerate(lines, start=1)
            if len(line) != _HEX_DIGITS or set(line.lower()) - set("0123456789abcdef")
        ]
        if problems or not lines:
            raise ConfigError(problems or [f"api_keys: {path} holds no key"])
        return cls([bytes.fromhex(line) for line in lines])

    def check(self, authorization: str | None) -> str:
        """Who asks, under a name that is no secret; "" where no key is needed.

        Raises:
            ApiError: 401 where the key is missing or unknown.
        """
        if self._digests is None:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        # Every key is looked at, whichever fits.
        fits = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(fits):
            raise ApiError(
                401,
                "the API key is missing or unknown; send `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return digest.hex()[:12]
