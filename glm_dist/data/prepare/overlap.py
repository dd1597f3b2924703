"""Which training documents repeat evaluation text: whole, or by one of its n-grams.

An n-gram is a run of words, or of Han characters, without regard to case, width and punctuation.
Evaluation text becomes sorted hashes on disk, one array a set, which every task maps; documents are
looked at one by one, so that memory holds neither.
"""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from glm_dist.data.prepare.evaluation_text import evaluation_texts
from glm_dist.data.prepare.settings import SourceSettings
from glm_dist.data.prepare.sources import list_files
from glm_dist.data.text_units import text_units

SHORTEST_NGRAM = 8  # of a text shorter than n; what is shorter still is common speech (GPT-3, C)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_HASHES_AT_A_TIME = 1 << 20
INDEX = "index.json"


class Exclusions:
    """Evaluation sets, and what of a document stands in each."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.names: list[str] = index["names"]
        self.num_texts: list[int] = index["texts"]
        self._lengths: list[int] = index["lengths"]
        self._any = np.load(folder / "any.npy", mmap_mode="r")
        self._sets = [
            np.load(folder / f"set-{number:04d}.npy", mmap_mode="r")
            for number in range(len(self.names))
        ]

    def found_in(self, text: str) -> np.ndarray:
        """Whether the text repeats text of each set, bool [sets]."""
        hashes = _document_hashes(text, self._lengths)
        hits = hashes[_is_in(self._any, hashes)]
        found = np.zeros(len(self.names), dtype=bool)
        if len(hits):
            found[:] = [_is_in(one, hits).any() for one in self._sets]
        return found


def load_exclusions(folder: Path) -> Exclusions:
    """The sets in a folder, once a process."""
    return _load(folder, (folder / INDEX).stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _load(folder: Path, written_at: int) -> Exclusions:
    return Exclusions(folder)


def write_exclusions(folder: Path, paths: Sequence[str], ngram: int) -> None:
    """Hash the evaluation files of `paths`, each a file, folder or glob, once.

    Args:
        folder: where the hashes lie; one that is finished is kept.
        paths: the sets, in the order of their numbers.
        ngram: length of the n-grams in words or Han characters; 0 for whole texts alone.

    Raises:
        DataError: naming each path without readable files.
    """
    if (folder / INDEX).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    lengths, counts, everything = set[int](), [], np.zeros(0, dtype=np.uint64)
    for number, path in enumerate(paths):
        hashes, count, used = _hash_set(path, ngram)
        np.save(folder / f"set-{number:04d}.npy", hashes)
        everything = np.union1d(everything, hashes)
        lengths |= used
        counts.append(count)
    np.save(folder / "any.npy", everything)
    index = {"names": list(paths), "texts": counts, "lengths": sorted(lengths)}
    (folder / INDEX).write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")


def _hash_set(path: str, ngram: int) -> tuple[np.ndarray, int, set[int]]:
    """Sorted hashes of a set, how many texts it holds, and the lengths of its n-grams."""
    hashes, pending, size = np.zeros(0, dtype=np.uint64), list[np.ndarray](), 0
    count, lengths = 0, set[int]()
    for text in _texts(path):
        count += 1
        units = _unit_hashes(text)
        length = min(ngram, len(units))
        pending.append(_whole(text, units))
        if ngram and length >= min(SHORTEST_NGRAM, ngram):
            lengths.add(length)
            pending.append(_ngram_hashes(units, length))
        size += len(pending[-1])
        if size > _HASHES_AT_A_TIME:
            hashes, pending, size = np.unique(np.concatenate([hashes, *pending])), [], 0
    return np.unique(np.concatenate([hashes, *pending])), count, lengths


def _texts(path: str) -> Iterator[str]:
    for file, _ in list_files(SourceSettings(name="exclude", path=path)):
        yield from evaluation_texts(file)


def _document_hashes(text: str, lengths: Sequence[int]) -> np.ndarray:
    units = _unit_hashes(text)
    return np.concatenate(
        [_whole(text, units), *(_ngram_hashes(units, length) for length in lengths)]
    )


def _whole(text: str, units: np.ndarray) -> np.ndarray:
    """One hash of all units; of all characters where there are none."""
    if len(units):
        return _ngram_hashes(units, len(units))
    return np.array([xxhash.xxh3_64_intdigest(text.strip().encode())], dtype=np.uint64)


def _unit_hashes(text: str) -> np.ndarray:
    units = text_units(unicodedata.normalize("NFKC", text))
    return np.fromiter(map(_unit_hash, units), dtype=np.uint64, count=len(units))


@lru_cache(maxsize=1 << 18)
def _unit_hash(unit: str) -> int:
    return xxhash.xxh3_64_intdigest(unit.encode())


def _ngram_hashes(units: np.ndarray, length: int) -> np.ndarray:
    """Hashes of all runs of `length` units: polynomials modulo 2^64."""
    count = len(units) - length + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    total = np.full(count, length, dtype=np.uint64)
    for offset in range(length):
        total = total * _FACTOR + units[offset : offset + count]
    return total


def _is_in(known: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Which of the hashes stand in a sorted array."""
    if not len(known):
        return np.zeros(len(hashes), dtype=bool)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[places] == hashes
