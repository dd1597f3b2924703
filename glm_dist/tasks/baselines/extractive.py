"""Answers cut out of the input: its first sentences, or the clause nearest to a question."""

import re
from collections import Counter
from math import log

from glm_dist.data.text_units import text_units

_SENTENCE = re.compile(r"[^。！？!?\n]+?(?:[。！？!?]+|\.(?=\s|$)|\n|$)")
_CLAUSE = re.compile(r"[^，,；;：:。！？!?\n]+")


def split_sentences(text: str) -> list[str]:
    """Sentences of English or Chinese text with their end marks; a line end ends one too."""
    found = (match.strip() for match in _SENTENCE.findall(text))
    return [sentence for sentence in found if sentence]


def lead(text: str, num_sentences: int) -> str:
    """The first sentences, for a dialogue the first turns: what a summary has to beat."""
    return " ".join(split_sentences(text)[:num_sentences])


def overlap_answer(question: str, context: str) -> str:
    """The clause that stands nearest to the question's words and holds few of them itself.

    The sentence that shares most with the question is found by words weighted by how rare they are
    in the context; of its clauses the answer is the one with most weight the question lacks.
    """
    sentences = split_sentences(context) or [context]
    units = [set(text_units(sentence)) for sentence in sentences]
    counts = Counter(unit for one in units for unit in one)
    asked = set(text_units(question))

    def weight(found: set[str]) -> float:
        return sum(log(1 + len(sentences) / counts[unit]) for unit in found if counts[unit])

    best = max(range(len(sentences)), key=lambda number: weight(units[number] & asked))
    clauses = [clause.strip() for clause in _CLAUSE.findall(sentences[best])] or [sentences[best]]
    return max(clauses, key=lambda clause: weight(set(text_units(clause)) - asked))
