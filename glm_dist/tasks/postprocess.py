"""Generated text put in order: pure functions of a string, each switched on in a task's config.

They stand apart from decoding because they change no probability, only how an answer reads.
"""

import re
from collections.abc import Callable

from glm_dist.config import Settings

SENTENCE_ENDS = ".!?。！？…"
PAIRS = {"(": ")", "[": "]", "{": "}", "（": "）", "【": "】", "《": "》", "「": "」", "“": "”"}
_REPEATED = re.compile(r"([!?,;:。，！？；：、~～])\1+|(\.)\2{3,}")
_HAN = r"[\u3400-\u9fff]"
_BETWEEN_HAN = re.compile(rf"(?<={_HAN})[ \t]+(?={_HAN})")
_HAN_THEN_LATIN = re.compile(rf"(?<={_HAN})(?=[A-Za-z0-9])")
_LATIN_THEN_HAN = re.compile(rf"(?<=[A-Za-z0-9])(?={_HAN})")


class PostprocessSettings(Settings):
    """What is done to a generated answer, in this order."""

    collapse_punctuation: bool = True
    """`!!!` becomes `!`; three points stay."""
    trim_unfinished: bool = False
    """What stands behind the last end of a sentence is cut off, where there is one."""
    close_pairs: bool = True
    """Brackets and quotation marks that are open at the end are closed."""
    join_han: bool = True
    """No spaces between Han characters."""
    space_latin: bool = False
    """A space between Han characters and Latin letters or digits."""


def postprocess(text: str, settings: PostprocessSettings) -> str:
    """The text after all that is switched on."""
    steps: dict[str, Callable[[str], str]] = {
        "collapse_punctuation": collapse_punctuation,
        "trim_unfinished": trim_unfinished,
        "close_pairs": close_pairs,
        "join_han": join_han,
        "space_latin": space_latin,
    }
    for name, step in steps.items():
        if getattr(settings, name):
            text = step(text)
    return text.strip()


def collapse_punctuation(text: str) -> str:
    """Runs of one mark become one; more than three points become three."""
    return _REPEATED.sub(lambda match: match[1] or "...", text)


def trim_unfinished(text: str) -> str:
    """The text up to its last end of a sentence and the marks that close there; all without one."""
    last = max((text.rfind(mark) for mark in SENTENCE_ENDS), default=-1)
    if last < 0:
        return text
    end = last + 1
    while end < len(text) and text[end] in "\"'”’)）】》」":
        end += 1
    return text[:end]


def close_pairs(text: str) -> str:
    """The text with what is left open closed, innermost first; straight quotes by their number."""
    left_open: list[str] = []
    for char in text:
        if char in PAIRS:
            left_open.append(PAIRS[char])
        elif left_open and char == left_open[-1]:
            left_open.pop()
    quote = '"' if text.count('"') % 2 else ""
    return text + quote + "".join(reversed(left_open))


def join_han(text: str) -> str:
    """No white space between Han characters."""
    return _BETWEEN_HAN.sub("", text)


def space_latin(text: str) -> str:
    """A space wherever Han characters and Latin letters or digits meet."""
    return _LATIN_THEN_HAN.sub(" ", _HAN_THEN_LATIN.sub(" ", text))
