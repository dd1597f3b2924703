"""The word list of the LSTM baselines, and pretrained vectors for it in GloVe's text format."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from glm_dist.errors import DataError

PAD, UNKNOWN = 0, 1
NUM_SPECIAL = 2


class Vocabulary:
    """The most frequent words; ids 0 and 1 are padding and everything else."""

    def __init__(self, sentences: Iterable[Sequence[str]], size: int) -> None:
        counts = Counter(itertools.chain.from_iterable(sentences))
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        self.words = ordered[:size]
        self._ids = {word: number for number, word in enumerate(self.words, NUM_SPECIAL)}

    def __len__(self) -> int:
        return NUM_SPECIAL + len(self.words)

    def encode(self, words: Sequence[str]) -> list[int]:
        """An id a word; a text without words is one unknown word."""
        return [self._ids.get(word, UNKNOWN) for word in words] or [UNKNOWN]

    def read_vectors(self, path: str | Path, size: int) -> tuple[np.ndarray, int]:
        """Vectors [words, size] from a file of `word v1 v2 …` lines, and how many words it has.

        Rows of words that are not there are zero. A first line that only counts (word2vec,
        fastText) is passed over.

        Raises:
            DataError: when a line has another number of values, naming it.
        """
        vectors, found = np.zeros((len(self), size), dtype=np.float32), 0
        with open(Path(path).expanduser(), encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                # Words of some published files hold spaces.
                word, *values = line.rstrip().rsplit(" ", size)
                if number == 1 and len(values) == 1 and size != 1:
                    continue
                if len(values) != size:
                    raise DataError(
                        f"{path}: line {number} has {len(values)} values, embedding_size is "
                        f"{size}; set embedding_size to what the file holds"
                    )
                row = self._ids.get(word)
                if row is not None:
                    vectors[row] = np.array(values, dtype=np.float32)
                    found += 1
        return vectors, found
