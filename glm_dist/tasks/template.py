"""Prompts with holes: words of the template, masks, and fields of an example.

Text of an example is never searched for masks or roles: whatever a user writes stays text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from glm_dist.errors import DataError
from glm_dist.tokenizer import MASKS, Tokenizer

_HOLE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """A text such as `{text} It was [MASK].`, of which the fields are still open."""

    text: str

    @property
    def fields(self) -> list[str]:
        """Names of its fields, in their order."""
        return _HOLE.findall(self.text)

    def problems(self, known: Sequence[str], num_masks: int = 1) -> list[str]:
        """What is wrong with it, given the fields of its task."""
        unknown = [name for name in self.fields if name not in known]
        found = [
            f"{self.text!r}: {{{name}}} is no field; there are {', '.join(known)}"
            for name in unknown
        ]
        if not self.fields:
            found.append(f"{self.text!r}: has no field; write e.g. {{{known[0]}}}")
        masks = sum(self.text.count(mask) for mask in MASKS)
        if masks != num_masks:
            found.append(
                f"{self.text!r}: has {masks} masks and needs {num_masks}, one of {', '.join(MASKS)}"
            )
        return found

    def encode_answer(self, text: str, tokenizer: Tokenizer) -> np.ndarray:
        """Token ids of what fills the mask, int32; a space that stands before it is theirs."""
        (is_behind,) = tokenizer.encode_masked(self.text).behind_space
        return tokenizer.encode_answer(text, is_behind)

    def render(
        self, values: Mapping[str, str], tokenizer: Tokenizer, max_tokens: int, place: str = ""
    ) -> np.ndarray:
        """`[ENC]` and the filled template, int32, at most `max_tokens` long.

        Where there is not room for all, the longest fields lose their ends.

        Raises:
            DataError: when not even the template's own words fit.
        """
        parts = _HOLE.split(self.text)  # words and names by turns
        words = [tokenizer.encode_masked(part).tokens for part in parts[::2]]
        filled = tokenizer.encode_batch([values[name] for name in parts[1::2]])
        room = max_tokens - 1 - sum(map(len, words))
        if room < len(filled):
            raise DataError(
                f"{place or repr(self.text)}: {max_tokens} tokens do not hold the template; raise "
                "rows.sequence_length"
            )
        kept = [
            tokens[:length] for tokens, length in zip(filled, _share(filled, room), strict=True)
        ]
        laid = [np.array([tokenizer.special.enc], np.int32), words[0]]
        for tokens, after in zip(kept, words[1:], strict=True):
            laid += [tokens, after]
        return np.concatenate(laid).astype(np.int32)


def _share(filled: Sequence[np.ndarray], room: int) -> list[int]:
    """Lengths that fit the room together: the shorter ones stay whole, the others end level."""
    lengths = [len(tokens) for tokens in filled]
    for number, rank in zip(np.argsort(lengths, kind="stable"), range(len(lengths)), strict=True):
        level = room // (len(lengths) - rank)
        lengths[number] = min(lengths[number], level)
        room -= lengths[number]
    return lengths
