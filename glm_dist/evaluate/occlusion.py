"""Why a text got its label, asked of an engine: how far the score falls without each of its words.

Integrated gradients (`explain`) add up to the score but take gradients, which a model that is
served has none of: it may be quantised, carry adapters, run on another machine. Occlusion (Zeiler
and Fergus 2014) takes only more questions of the same kind.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from glm_dist.data.text_units import HAN
from glm_dist.tasks import Question, Reply
from glm_dist.tokenizer import Tokenizer

MOST_PARTS = 64
"""Words of a longer text are joined with their neighbours, so that an explanation ends."""


class Part(NamedTuple):
    """A word, or some neighbouring ones."""

    text: str
    places: list[int]
    """Indices of its tokens."""


class Spelt(NamedTuple):
    """Some neighbouring tokens."""

    bytes: bytes
    places: list[int]


def parts_of(tokens: np.ndarray, tokenizer: Tokenizer) -> list[Part]:
    """The text of a Part A in parts: words, each Han character's token, or several of them.

    What is no text, such as a mask, belongs to none.
    """
    places = np.flatnonzero(tokenizer.piece_bytes[tokens] > 0).tolist()
    pieces = [Spelt(tokenizer.token_bytes(int(tokens[place])), [place]) for place in places]
    words = _joined(_joined(pieces, _is_cut), _is_one_word)
    size = max(1, -(-len(words) // MOST_PARTS))
    groups = [words[start : start + size] for start in range(0, len(words), size)]
    return [
        Part(
            b"".join(word.bytes for word in group).decode(errors="replace"),
            [place for word in group for place in word.places],
        )
        for group in groups
    ]


def without(question: Question, part: Part, mask: int) -> Question:
    """The question with a part masked."""
    tokens = question.tokens.copy()
    tokens[part.places] = mask
    return replace(question, tokens=tokens)


def log_odds(reply: Reply, chosen: int) -> float:
    """Of one answer against all others."""
    [scores] = reply.scores
    return float(scores[chosen] - np.logaddexp.reduce(np.delete(scores, chosen)))


def falls(whole: Reply, masked: Sequence[Reply], chosen: int) -> list[float]:
    """How far the log odds of the chosen answer fall with each part masked."""
    score = log_odds(whole, chosen)
    return [score - log_odds(reply, chosen) for reply in masked]


def _joined(pieces: Sequence[Spelt], go_together: Callable[[bytes, bytes], bool]) -> list[Spelt]:
    """Neighbouring tokens joined as long as what is there and what comes go together."""
    found: list[Spelt] = []
    for one in pieces:
        last = found[-1] if found else None
        is_near = last is not None and last.places[-1] == one.places[0] - 1
        if last is not None and is_near and go_together(last.bytes, one.bytes):
            found[-1] = Spelt(last.bytes + one.bytes, last.places + one.places)
        else:
            found.append(one)
    return found


def _is_cut(before: bytes, after: bytes) -> bool:
    """Whether a character goes on."""
    try:
        before.decode()
    except UnicodeDecodeError:
        return True
    return False


def _is_one_word(before: bytes, after: bytes) -> bool:
    last, first = (one.decode(errors="replace") for one in (before[-4:], after))
    ends = last[-1], first[0]
    return all(end.isalnum() and not HAN.match(end) for end in ends)
