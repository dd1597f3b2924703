"""From tokens to text, as they come: whole characters only, and nothing of a stop string.

It stands apart from the tokenizer, which decodes finished texts: here any id has a text, a
character spelt in bytes waits for its last one, and text that may turn out to begin a stop string
waits until that is decided.
"""

import bisect
import codecs
import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from glm_dist.tokenizer import Tokenizer

_REPLACE_BYTES = "glm_dist.replace_bytes"


def _replace_bytes(error: UnicodeError) -> tuple[str, int]:
    """U+FFFD for each byte that is no character, as SentencePiece decodes."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_REPLACE_BYTES, _replace_bytes)


class TokenTexts:
    """The bytes that each token adds to a text; none for roles and for ids past the vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        roles = set(tokenizer.special_ids.tolist())
        self._bytes = [
            b"" if token in roles else tokenizer.token_bytes(token)
            for token in range(tokenizer.vocab_size)
        ]

    def of(self, token: int) -> bytes:
        """UTF-8 of the text of a token, which may be a part of a character."""
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""

    def join(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of tokens; what is no UTF-8 becomes U+FFFD."""
        return b"".join(map(self.of, tokens)).decode("utf-8", _REPLACE_BYTES)

    def holding(self, part: bytes) -> list[int]:
        """Tokens whose text has this in it."""
        joined, starts = self._joined
        found = [place.start() for place in re.finditer(b"(?=" + re.escape(part) + b")", joined)]
        places = np.array(found, dtype=np.int64)
        tokens = np.searchsorted(starts, places, side="right") - 1
        is_inside = places + len(part) <= starts[tokens + 1]
        return np.unique(tokens[is_inside]).tolist()

    def beginning(self, part: bytes) -> list[int]:
        """Tokens whose text begins with this."""
        size = len(part)
        start = bisect.bisect_left(self._sorted, part, key=self._bytes.__getitem__)
        end = bisect.bisect_right(self._sorted, part, key=lambda token: self._bytes[token][:size])
        return self._sorted[start:end]

    @cached_property
    def _joined(self) -> tuple[bytes, np.ndarray]:
        """All texts in a row, and where each begins; the last entry is their end."""
        sizes = [len(text) for text in self._bytes]
        return b"".join(self._bytes), np.cumsum([0, *sizes])

    @cached_property
    def _sorted(self) -> list[int]:
        return sorted(range(len(self._bytes)), key=self._bytes.__getitem__)


class TextStream:
    """The text of one answer, given out as soon as it is certain."""

    def __init__(
        self, texts: TokenTexts, stop: Sequence[str] = (), *, behind_space: bool = False
    ) -> None:
        """Args: behind_space: the space that the answer begins with is left out of its text."""
        self._texts = texts
        self._leaves_space = behind_space
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(_REPLACE_BYTES)
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, token: int) -> str:
        """The text that a token makes certain; nothing more after a stop string."""
        return self._give(self._decoder.decode(self._texts.of(token)), is_end=False)

    def finish(self) -> str:
        """What was held back; a character that was never completed is U+FFFD."""
        return self._give(self._decoder.decode(b"", final=True), is_end=True)

    def _give(self, text: str, *, is_end: bool) -> str:
        if self.stopped_by is not None:
            return ""
        if self._leaves_space and text:
            text, self._leaves_space = text.removeprefix(" "), False
        text = self._held + text
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            end, self.stopped_by = min(found, key=lambda place: (place[0], -len(place[1])))
            self._held = ""
            return text[:end]
        held = 0 if is_end else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that a stop string begins with."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
