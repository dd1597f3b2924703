"""From references and predictions to scores, by the field's own libraries.

Pure functions; they stand apart from models, so that every arm of a comparison is scored by the
same lines. What is a share is in percent. The libraries (extra `scores`) are imported when needed.
"""

import difflib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from glm_dist.data.text_units import HAN, text_units
from glm_dist.errors import DataError, import_optional
from glm_dist.evaluate.score import Score, mean_score

References = Sequence[str] | Sequence[Sequence[str]]
"""One reference an example, or several."""


def accuracy(references: Sequence[Any], predictions: Sequence[Any]) -> Score:
    """Share of examples with the right label."""
    _check_pairs("accuracy", references, predictions)
    return mean_score(
        "accuracy", [ours == theirs for ours, theirs in zip(predictions, references, strict=True)]
    )


def macro_f1(
    references: Sequence[str], predictions: Sequence[str], labels: Sequence[str] | None = None
) -> Score:
    """Mean over the labels of each one's F1; labels that never occur count as 0."""
    _check_pairs("macro F1", references, predictions)
    names = _labels(references, predictions, labels)
    metrics = import_optional("sklearn.metrics", "scores")
    value = metrics.f1_score(
        references, predictions, labels=names, average="macro", zero_division=0
    )
    ours, theirs = _one_hot(predictions, names), _one_hot(references, names)
    return f1_of_counts("macro F1", 100 * value, ours * theirs, ours, theirs, is_macro=True)


def micro_f1(
    references: Sequence[Collection[str]], predictions: Sequence[Collection[str]]
) -> Score:
    """F1 over all labels of examples that have any number of them each."""
    _check_pairs("micro F1", references, predictions)
    names = sorted({label for labels in [*references, *predictions] for label in labels})
    metrics = import_optional("sklearn.metrics", "scores")
    theirs = np.array([[name in labels for name in names] for labels in references], float)
    ours = np.array([[name in labels for name in names] for labels in predictions], float)
    value = metrics.f1_score(theirs, ours, average="micro", zero_division=0) if names else 0.0
    counts = [part.sum(1, keepdims=True) for part in (ours * theirs, ours, theirs)]
    return f1_of_counts("micro F1", 100 * value, *counts)


def matthews(references: Sequence[str], predictions: Sequence[str]) -> Score:
    """Matthews' correlation, -100 to 100: 0 for any guess that does not look at the text."""
    _check_pairs("MCC", references, predictions)
    names = _labels(references, predictions, None)
    metrics = import_optional("sklearn.metrics", "scores")
    value = 100 * metrics.matthews_corrcoef(references, predictions)
    pairs = _one_hot(references, names)[:, :, None] * _one_hot(predictions, names)[:, None, :]
    return Score("MCC", value, pairs.reshape(len(pairs), -1), _matthews_of_counts)


def _matthews_of_counts(sums: np.ndarray) -> np.ndarray:
    """Gorodkin's generalisation to several labels, from confusion counts [R, labels * labels]."""
    size = round(np.sqrt(sums.shape[1]))
    table = sums.reshape(-1, size, size).astype(np.float64)
    total, hits = table.sum((1, 2)), np.trace(table, axis1=1, axis2=2)
    theirs, ours = table.sum(2), table.sum(1)
    covariance = hits * total - (theirs * ours).sum(1)
    spread = np.sqrt((total**2 - (ours**2).sum(1)) * (total**2 - (theirs**2).sum(1)))
    return 100 * np.divide(covariance, spread, out=np.zeros_like(total), where=spread > 0)


def entity_f1(references: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> Score:
    """F1 of whole entities from token tags (BIO, BIOES, BMES), by seqeval."""
    _check_pairs("entity F1", references, predictions)
    theirs = [[_as_bioes(tag) for tag in tags] for tags in references]
    ours = [[_as_bioes(tag) for tag in tags] for tags in predictions]
    lengths = [
        number
        for number, pair in enumerate(zip(theirs, ours, strict=True))
        if len(pair[0]) != len(pair[1])
    ]
    if lengths:
        raise DataError(
            f"entity F1: the tags of sentence {lengths[0]} (from 0) are {len(ours[lengths[0]])}, "
            f"its tokens {len(theirs[lengths[0]])}; predict one tag a token"
        )
    labeling = import_optional("seqeval.metrics.sequence_labeling", "scores")
    value = labeling.f1_score(theirs, ours, zero_division=0)
    spans = [
        (set(labeling.get_entities(one)), set(labeling.get_entities(two)))
        for one, two in zip(ours, theirs, strict=True)
    ]
    return _span_score("entity F1", 100 * value, spans)


def span_f1(references: Sequence[Collection[Any]], predictions: Sequence[Collection[Any]]) -> Score:
    """F1 of sets of spans, edits or any other hashable answers, over all examples together."""
    _check_pairs("span F1", references, predictions)
    pairs = [(set(ours), set(theirs)) for theirs, ours in zip(references, predictions, strict=True)]
    score = _span_score("span F1", 0.0, pairs)
    value = float(score.combine(score.statistics.sum(0, keepdims=True))[0])
    return Score("span F1", value, score.statistics, score.combine)


def _span_score(name: str, value: float, pairs: Sequence[tuple[set[Any], set[Any]]]) -> Score:
    counts = np.array([(len(a & b), len(a), len(b)) for a, b in pairs], float).reshape(-1, 3)
    return f1_of_counts(name, value, *np.split(counts, 3, axis=1))


def _as_bioes(tag: str) -> str:
    """BMES calls `M` what BIOES calls `I`."""
    return "I" + tag[1:] if tag.startswith("M-") else tag


def bleu(references: References, predictions: Sequence[str], language: str) -> Score:
    """Corpus BLEU by sacrebleu, with its signature; Chinese by its `zh` tokenizer."""
    sacrebleu = import_optional("sacrebleu", "scores")
    tokenize = "zh" if language == "zh" else "13a"
    return _sacrebleu_score("BLEU", sacrebleu.BLEU(tokenize=tokenize), references, predictions)


def chrf(references: References, predictions: Sequence[str]) -> Score:
    """ChrF by sacrebleu: F-score of character n-grams, the same for every language."""
    sacrebleu = import_optional("sacrebleu", "scores")
    return _sacrebleu_score("chrF", sacrebleu.CHRF(), references, predictions)


def _sacrebleu_score(
    name: str, metric: Any, references: References, predictions: Sequence[str]
) -> Score:
    several = _several(name, references, predictions)
    longest = max(len(one) for one in several)
    streams = [[one[min(k, len(one) - 1)] for one in several] for k in range(longest)]
    value = metric.corpus_score(list(predictions), streams)
    # Its own significance tests resample the same private figures (sacrebleu/significance.py).
    statistics = np.array(metric._extract_corpus_statistics(list(predictions), streams), float)

    def combine(sums: np.ndarray) -> np.ndarray:
        return np.array([metric._compute_score_from_stats(row).score for row in sums])

    return Score(name, value.score, statistics, combine, str(metric.get_signature()))


def rouge(references: References, predictions: Sequence[str], kind: str = "rougeL") -> Score:
    """Mean F1 of rouge1, rouge2 or rougeL by rouge-score; of several references the best.

    English words are stemmed as the field does; where references are Chinese, characters count.
    """
    several = _several(kind, references, predictions)
    scorer = import_optional("rouge_score.rouge_scorer", "scores")
    is_chinese = any(HAN.search(text) for one in several for text in one)
    tokenizer = _UnitTokenizer() if is_chinese else None
    measure = scorer.RougeScorer([kind], use_stemmer=not is_chinese, tokenizer=tokenizer)
    values = [
        measure.score_multi(one, text)[kind].fmeasure
        for one, text in zip(several, predictions, strict=True)
    ]
    return mean_score(kind, values)


class _UnitTokenizer:
    """rouge-score's own tokenizer throws away all but a-z and digits."""

    def tokenize(self, text: str) -> list[str]:
        return text_units(text)


def exact_match(references: References, predictions: Sequence[str], language: str = "en") -> Score:
    """Share of answers equal to a reference after the official normalisation."""
    normalise = normalise_chinese if language == "zh" else normalise_squad
    return _best("exact match", references, predictions, lambda a, b: normalise(a) == normalise(b))


def answer_f1(references: References, predictions: Sequence[str], language: str = "en") -> Score:
    """Mean overlap with the best reference: of words (SQuAD), of a run of characters (CMRC)."""
    overlap = _chinese_overlap if language == "zh" else _squad_overlap
    return _best("answer F1", references, predictions, overlap)


def normalise_squad(text: str) -> str:
    """As SQuAD's `evaluate-v1.1.py`: lower case, no punctuation, no articles, single spaces."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def normalise_chinese(text: str) -> str:
    """As CMRC 2018's script, which DRCD is scored by too: lower case, no punctuation, no spaces."""
    return "".join(
        char
        for char in text.lower()
        if not char.isspace() and unicodedata.category(char)[0] not in "PS"
    )


def _squad_overlap(prediction: str, reference: str) -> float:
    ours, theirs = normalise_squad(prediction).split(), normalise_squad(reference).split()
    return _harmonic((Counter(ours) & Counter(theirs)).total(), len(ours), len(theirs))


def _chinese_overlap(prediction: str, reference: str) -> float:
    ours, theirs = text_units(prediction), text_units(reference)
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    return _harmonic(matcher.find_longest_match().size, len(ours), len(theirs))


def recall_at(k: int, ranks: Sequence[int]) -> Score:
    """Share of examples whose right candidate ranks among the first `k`; ranks count from 1."""
    return mean_score(f"recall@{k}", [rank <= k for rank in ranks])


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words or Han characters in percent of all n-grams, over all texts."""
    grams = [gram for text in texts for gram in ngrams(text_units(text), n)]
    return 100 * len(set(grams)) / max(1, len(grams))


def repetition(texts: Sequence[str], n: int = 4) -> Score:
    """Mean share of n-grams that stood earlier in the text (Welleck et al. 2020, seq-rep-n)."""
    shares = []
    for text in texts:
        grams = ngrams(text_units(text), n)
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return mean_score(f"repetition of {n}-grams", shares)


def ngrams(units: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` units, in order."""
    return list(zip(*(units[start:] for start in range(n)), strict=False))


def _best(
    name: str,
    references: References,
    predictions: Sequence[str],
    overlap: Callable[[str, str], float],
) -> Score:
    several = _several(name, references, predictions)
    pairs = zip(predictions, several, strict=True)
    return mean_score(name, [max(overlap(text, one) for one in many) for text, many in pairs])


def _harmonic(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else float(ours == theirs == 0)


def f1_of_counts(
    name: str,
    value: float,
    hits: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    is_macro: bool = False,
) -> Score:
    """F1 from counts [N, C] of hits, of what we gave and of what is right."""

    def combine(sums: np.ndarray) -> np.ndarray:
        hits, ours, theirs = np.split(sums, 3, axis=1)
        if not is_macro:
            hits, ours, theirs = (part.sum(1, keepdims=True) for part in (hits, ours, theirs))
        whole = ours + theirs
        each = np.divide(2 * hits, whole, out=np.zeros_like(whole), where=whole > 0)
        return 100 * each.mean(axis=1)

    return Score(name, float(value), np.hstack((hits, ours, theirs)), combine)


def _one_hot(values: Sequence[str], names: Sequence[str]) -> np.ndarray:
    return (np.asarray(values)[:, None] == np.asarray(names)[None, :]).astype(np.float64)


def _labels(
    references: Sequence[str], predictions: Sequence[str], labels: Sequence[str] | None
) -> list[str]:
    return list(labels) if labels is not None else sorted({*references, *predictions})


def _several(name: str, references: References, predictions: Sequence[str]) -> list[Sequence[str]]:
    _check_pairs(name, references, predictions)
    return [[one] if isinstance(one, str) else one for one in references]


def _check_pairs(name: str, references: Sequence[Any], predictions: Sequence[Any]) -> None:
    if len(references) != len(predictions) or not len(references):
        raise DataError(
            f"{name}: got {len(predictions)} predictions for {len(references)} references; give "
            "one for each, in the same order"
        )
