"""Texts, and pairs of them, that a head labels as a whole.

It stands apart from the tasks that do, so that a text is read alike whether it gets one label or
several.
"""

from collections.abc import Sequence

import numpy as np

from glm_dist.tasks.examples import Example
from glm_dist.tasks.task import Binding
from glm_dist.tasks.template import Template

TEXTS = ("text", "text_b")


def whole_text(example: Example, binding: Binding) -> np.ndarray:
    """Tokens of its text, or of both its texts in two lines, as far as they fit."""
    pair = "{text}\n{text_b}" if example.text("text_b") else "{text}"
    values = {name: example.text(name) for name in TEXTS}
    return Template(pair).render(values, binding.tokenizer, binding.max_tokens, example.place)


def pooled_place(tokens: np.ndarray, binding: Binding) -> int:
    """Index of the token that a text is labelled by."""
    return 0 if binding.pools_first else len(tokens) - 1


def shown_texts(example: Example) -> str:
    """Both texts as a person reads them."""
    return " / ".join(filter(None, map(example.text, TEXTS)))


def text_problems(example: Example) -> list[str]:
    """An empty text."""
    return [] if example.text("text") else ["the text is empty; fill it or take the line out"]


def sorted_labels(labels: Sequence[str] | set[str]) -> list[str]:
    """Numbers by their value, other labels by their letters."""
    if all(label.lstrip("-").isdigit() for label in labels):
        return sorted(labels, key=int)
    return sorted(labels)
