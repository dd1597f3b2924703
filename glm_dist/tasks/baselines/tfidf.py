"""TF-IDF: logistic regression for classes, cosine for the next reply.

Features are n-grams of words (Chinese: of characters, there are no spaces to cut at) and, for what
lies inside words, of characters.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from glm_dist.config import Settings
from glm_dist.data.text_units import text_units
from glm_dist.errors import import_optional

FEW_TEXTS = 1000  # below it an n-gram of a single text stays a feature


class TfidfSettings(Settings):
    """Features and regularisation."""

    max_word_ngram: int = 2
    """Longest n-gram of words or Han characters."""
    max_character_ngram: int = 4
    """Longest n-gram of characters, from 2 on; 1 for none."""
    inverse_regularisation: float = 4.0
    """Scikit-learn's C: larger fits the training split closer."""
    max_iterations: int = 1000
    """Of L-BFGS."""


class TfidfClassifier:
    """TF-IDF and logistic regression, by scikit-learn."""

    def __init__(
        self, texts: Sequence[str], labels: Sequence[str], settings: TfidfSettings | None = None
    ) -> None:
        self.settings = settings or TfidfSettings()
        linear_model = import_optional("sklearn.linear_model", "scores")
        self._features = _features(self.settings, len(texts))
        self._model = linear_model.LogisticRegression(
            C=self.settings.inverse_regularisation, max_iter=self.settings.max_iterations
        )
        self._model.fit(self._features.fit_transform(texts), labels)

    @property
    def labels(self) -> list[str]:
        """The columns of `predict_proba`."""
        return [str(label) for label in self._model.classes_]

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities [N, C]."""
        return self._model.predict_proba(self._features.transform(texts))

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The most likely label of each text."""
        return [self.labels[number] for number in self.predict_proba(texts).argmax(axis=1)]

    def describe(self, count: int = 8) -> str:
        """The size, and the n-grams that speak most for each label."""
        names = self._features.get_feature_names_out()
        weights = self._model.coef_
        if len(weights) == 1:
            weights = np.vstack((-weights, weights))
        lines = [f"TF-IDF and logistic regression: {len(names):,} features"]
        for label, row in zip(self.labels, weights, strict=True):
            best = [names[i].partition("__")[2] for i in np.argsort(-row)[:count]]
            lines.append(f"  {label}: {' | '.join(best)}")
        return "\n".join(lines)


class TfidfRanker:
    """Orders candidate replies by the cosine of their TF-IDF with what was said before."""

    def __init__(self, texts: Sequence[str], settings: TfidfSettings | None = None) -> None:
        self._features = _features(settings or TfidfSettings(), len(texts))
        self._features.fit(texts)

    def scores(self, context: str, candidates: Sequence[str]) -> np.ndarray:
        """One score a candidate, larger is likelier."""
        rows = self._features.transform([context, *candidates])
        lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
        products = np.asarray((rows[1:] @ rows[0].T).todense()).ravel()
        return products / np.maximum(lengths[1:] * lengths[0], 1e-12)


def _features(settings: TfidfSettings, num_texts: int) -> Any:
    text = import_optional("sklearn.feature_extraction.text", "scores")
    pipeline = import_optional("sklearn.pipeline", "scores")
    shared = {"sublinear_tf": True, "min_df": 1 if num_texts < FEW_TEXTS else 2}
    words = text.TfidfVectorizer(
        tokenizer=text_units,
        token_pattern=None,
        lowercase=False,
        ngram_range=(1, settings.max_word_ngram),
        **shared,
    )
    parts = [("words", words)]
    if settings.max_character_ngram > 1:
        longest = settings.max_character_ngram
        characters = text.TfidfVectorizer(analyzer="char", ngram_range=(2, longest), **shared)
        parts.append(("characters", characters))
    return pipeline.FeatureUnion(parts)
