"""The answer that does not look: the most frequent label, and each token's most frequent tag."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np


class MajorityClassifier:
    """Gives every text the shares of the labels in the training split."""

    def __init__(self, labels: Sequence[str], names: Sequence[str]) -> None:
        counts = Counter(labels)
        self.labels = list(names)
        self.shares = np.array([counts[name] for name in names]) / len(labels)

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities [N, C]; the first of equally frequent labels is `argmax`."""
        return np.tile(self.shares, (len(texts), 1))

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The most frequent label, as often as there are texts."""
        return [self.labels[int(self.shares.argmax())]] * len(texts)

    def describe(self) -> str:
        """One line for a report."""
        label, share = self.predict([""])[0], self.shares.max()
        return f"majority: always {label!r}, {share:.1%} of the training split"


class MajorityTagger:
    """Gives a token the tag it had most often, and an unknown one the commonest tag of all."""

    def __init__(self, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> None:
        by_token: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for tokens, of_tokens in zip(sentences, tags, strict=True):
            for token, tag in zip(tokens, of_tokens, strict=True):
                by_token[token][tag] += 1
        self._tags = {token: _commonest(counts) for token, counts in by_token.items()}
        self._default = _commonest(sum(by_token.values(), Counter()))

    def predict(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """A tag for each token."""
        return [[self._tags.get(token, self._default) for token in one] for one in sentences]

    def describe(self) -> str:
        """One line for a report."""
        return f"majority tag of each of {len(self._tags):,} tokens, else {self._default}"


def _commonest(counts: Counter[str]) -> str:
    """The most frequent; of equals the first in alphabetical order."""
    return min(counts, key=lambda tag: (-counts[tag], tag))
