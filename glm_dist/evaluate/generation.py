"""What a model writes by itself: how likely it finds real text, how varied its own is, and samples.

Every predictor meets the same held-out text. Gone on with are beginnings of held-out documents,
drawn once and shown as they came.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from glm_dist.data.order import Permutation
from glm_dist.data.shards import TokenDataset
from glm_dist.evaluate.left_to_right import Predicted
from glm_dist.evaluate.score import gain, interval
from glm_dist.evaluate.scores import distinct, repetition
from glm_dist.inference import GenerationSettings, Generator

NUM_SHOWN = 10
REAL_TEXT = "text"
"""The arm that is the held-out text itself: what variety to hope for."""


class Continued(NamedTuple):
    """A beginning and what follows it."""

    start: str
    text: str


def held_out_starts(
    dataset: TokenDataset, language: str, count: int, start_tokens: int, text_tokens: int
) -> list[Continued]:
    """Beginnings of held-out documents of a language with what really follows.

    Args:
        dataset: whose validation split they are of.
        language: as the dataset calls it.
        count: so many at most.
        start_tokens: length of a beginning.
        text_tokens: of what follows; documents that end before are passed over.
    """
    found: list[Continued] = []
    lengths, decode = dataset.lengths("validation"), dataset.tokenizer.decode
    for number in Permutation(len(lengths), 0)(np.arange(len(lengths))).tolist():
        is_long = lengths[number] >= start_tokens + text_tokens
        if is_long and dataset.language_of("validation", number) == language:
            tokens = dataset.tokens("validation", number, 0, start_tokens + text_tokens)
            found.append(Continued(decode(tokens[:start_tokens]), decode(tokens[start_tokens:])))
        if len(found) == count:
            break
    return found


def continue_all(
    generator: Generator, starts: Sequence[Continued], settings: GenerationSettings
) -> list[Continued]:
    """The same beginnings as a model goes on with them, each drawn with a seed of its own."""
    seeds = range(settings.seed, settings.seed + len(starts))
    of_each = [settings.model_copy(update={"seed": seed}) for seed in seeds]
    generated = generator.generate([one.start for one in starts], of_each)
    return [
        Continued(one.start, generation.blanks[-1])
        for one, generation in zip(starts, generated, strict=True)
    ]


def generation_entry(
    predicted: Mapping[str, Predicted],
    written: Mapping[str, Mapping[str, Sequence[Continued]]],
) -> dict[str, Any]:
    """Figures in the form of `results.entry_of`, with bits a byte as the score.

    Args:
        predicted: by arm, what it made of the held-out text; `glm` is there.
        written: by arm and language what it wrote, and under `text` what really follows; a language
            may have none.
    """
    bits = {name: one.bits_per_byte() for name, one in predicted.items()}
    ours = interval([bits["glm"]])
    arms = {}
    for name in [*predicted, *(name for name in written if name not in predicted)]:
        scores = _bits_by_language(predicted[name]) if name in predicted else {}
        for language, texts in written.get(name, {}).items():
            scores |= _variety(language, [one.text for one in texts]) if texts else {}
        value = interval([bits[name]]) if name in bits else None
        arms[name] = {
            "score": None if value is None else value.value,
            "interval": None if value is None else [value.low, value.high],
            "seeds": [],
            "scores": scores,
        }
    gains = {name: gain([bits["glm"]], [theirs]) for name, theirs in bits.items() if name != "glm"}
    return {
        "metric": bits["glm"].name,
        "examples": len(np.unique(predicted["glm"].samples)),
        "score": ours.value,
        "interval": [ours.low, ours.high],
        **{name: arm["score"] for name, arm in arms.items() if name not in ("glm", REAL_TEXT)},
        "gains": {
            name: {"score": one.value, "interval": [one.low, one.high]}
            for name, one in gains.items()
        },
        "arms": arms,
        "samples": {
            language: [one._asdict() for one in texts[:NUM_SHOWN]]
            for language, texts in written.get("glm", {}).items()
            if texts
        },
    }


def _bits_by_language(predicted: Predicted) -> dict[str, float]:
    names = sorted(set(predicted.languages.tolist()))
    return {f"bits per byte {name}": predicted.bits_per_byte(name).value for name in names}


def _variety(language: str, texts: Sequence[str]) -> dict[str, float]:
    return {
        f"distinct-1 {language}": distinct(texts, 1),
        f"distinct-2 {language}": distinct(texts, 2),
        f"repetition {language}": repetition(texts).value,
    }
