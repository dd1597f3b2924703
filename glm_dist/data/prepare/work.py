"""The work of one task: scan a partition (hashes, sample), then encode it into shards.

No ray here: pure functions of a partition and the settings, each leaving a small finished file, so
that a restart redoes only what is missing.
"""

import itertools
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from glm_dist.data.prepare.overlap import load_exclusions
from glm_dist.data.prepare.readers import Bad, Item, read_documents
from glm_dist.data.prepare.settings import PrepareSettings
from glm_dist.data.prepare.sources import Partition
from glm_dist.data.shards import SPLITS, Document, write_shard
from glm_dist.errors import GlmDistError
from glm_dist.tokenizer import Tokenizer

HAN = re.compile(r"[\u3400-\u9fff]")
LANGUAGE_SAMPLE_CHARACTERS = 1000
HAN_SHARE = 0.2
ENCODE_BATCH_BYTES = 1 << 20
NO_DOCUMENT = np.zeros((0, 2), dtype=np.uint64)


@dataclass(frozen=True)
class Work:
    """Where a dataset is being made, and how."""

    folder: Path
    settings: PrepareSettings

    @property
    def scratch(self) -> Path:
        """Finished parts of an unfinished dataset."""
        return self.folder / "work"

    @property
    def exclusions(self) -> Path:
        """Hashes of the evaluation text that must not be trained on."""
        return self.scratch / "exclusions"

    def path(self, kind: str, number: int) -> Path:
        """A partition's file of some kind."""
        return self.scratch / f"{kind}-{number:05d}"


def scan(work: Work, partition: Partition, sample_shares: dict[str, float]) -> dict[str, Any]:
    """Read once: hash every document, keep a sample for the tokenizer, write bad records aside."""
    report = work.path("scan", partition.number).with_suffix(".json")
    if report.exists():
        return json.loads(report.read_text())
    hashes, bad, num_bytes, overlaps = [], list[Bad](), 0, list[np.ndarray]()
    find = _finder(work)
    with open(_temporary(work, "sample", partition), "w", encoding="utf-8") as sample:
        for source, _, item in read_partition(partition, work.settings):
            if isinstance(item, Bad):
                bad.append(item)
                continue
            digest = document_hash(item)
            hashes.append(divmod(digest, 1 << 64))
            num_bytes += len(item.encode())
            overlaps.append(find(item))
            if not overlaps[-1].any() and _draw(
                digest, work.settings.tokenizer.seed
            ) < sample_shares.get(source, 0.0):
                sample.write(json.dumps(item) + "\n")
    _commit(work, "sample", partition)
    arrays = {"hashes": np.array(hashes, dtype=np.uint64).reshape(-1, 2)}
    if work.settings.exclude:
        shape = (len(hashes), len(work.settings.exclude))
        arrays["overlaps"] = np.array(overlaps, dtype=bool).reshape(shape)
    for name, array in arrays.items():
        with open(_temporary(work, name, partition), "wb") as file:
            np.save(file, array)
        _commit(work, name, partition)
    result = {
        "number": partition.number,
        "documents": len(hashes),
        "text_bytes": num_bytes,
        "input_bytes": partition.num_bytes,
        "bad": [asdict(item) for item in bad],
    }
    _write_json(report, result)
    return result


def encode(work: Work, partition: Partition, kept: np.ndarray, tokenizer: Tokenizer) -> dict:
    """Read again: encode the kept documents and write a shard for each split."""
    report = work.path("encode", partition.number).with_suffix(".json")
    if report.exists():
        return json.loads(report.read_text())
    splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for split, document in _encoded(work, partition, kept, tokenizer):
        splits[split].append(document)
    result: dict[str, Any] = {"number": partition.number, "input_bytes": partition.num_bytes}
    counts: dict[str, Counter[str]] = {"sources": Counter(), "languages": Counter()}
    for split, documents in splits.items():
        if documents:
            path = work.folder / f"{split}-{partition.number:05d}.arrow"
            result[split] = write_shard(path, documents, tokenizer.vocab_size)
        for document in documents:
            counts["sources"][document.source] += len(document.tokens)
            counts["languages"][document.language] += len(document.tokens)
    result.update({name: dict(sorted(counter.items())) for name, counter in counts.items()})
    if work.settings.exclude:
        result["overlaps"] = _count_overlaps(work, splits, tokenizer)
    _write_json(report, result)
    return result


def _count_overlaps(
    work: Work, splits: dict[str, list[Document]], tokenizer: Tokenizer
) -> list[int]:
    """How many documents as they were written repeat text of each evaluation set: none should."""
    find, counts = _finder(work), np.zeros(len(work.settings.exclude), dtype=int)
    for document in itertools.chain.from_iterable(splits.values()):
        counts += find(tokenizer.decode(document.tokens))
    return counts.tolist()


def _finder(work: Work) -> Callable[[str], np.ndarray]:
    """What says of a text which evaluation sets it repeats, bool [sets]."""
    if not work.settings.exclude:
        nothing = np.zeros(0, dtype=bool)
        return lambda text: nothing
    return load_exclusions(work.exclusions).found_in


def read_partition(
    partition: Partition, settings: PrepareSettings
) -> Iterator[tuple[str, str | None, Item]]:
    """Source, given language and normalised text (or bad record) of every document, in order."""
    for part in partition.parts:
        for item in read_documents(part, settings):
            if isinstance(item, str):
                item = normalise(item, settings)
                if not item:
                    continue
            yield part.source, part.language, item


def normalise(text: str, settings: PrepareSettings) -> str:
    """The text in the Unicode form asked for, with plain line feeds."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if settings.normalisation == "none":
        return text
    return unicodedata.normalize("NFC" if settings.normalisation == "nfc" else "NFKC", text)


def document_hash(text: str) -> int:
    """128 bits of the text; equal texts are duplicates."""
    return xxhash.xxh3_128_intdigest(text.encode())


def guess_language(text: str) -> str:
    """`zh` where Han characters are common, else `en`."""
    head = text[:LANGUAGE_SAMPLE_CHARACTERS]
    return "zh" if len(HAN.findall(head)) > HAN_SHARE * len(head) else "en"


def _encoded(
    work: Work, partition: Partition, kept: np.ndarray, tokenizer: Tokenizer
) -> Iterator[tuple[str, Document]]:
    batch: list[tuple[str, str, str]] = []
    size, number = 0, 0
    for source, language, item in read_partition(partition, work.settings):
        if isinstance(item, Bad):
            continue
        number += 1
        if not kept[number - 1]:
            continue
        batch.append((source, language or guess_language(item), item))
        size += len(item)
        if size > ENCODE_BATCH_BYTES:
            yield from _encode_batch(batch, work.settings, tokenizer)
            batch, size = [], 0
    yield from _encode_batch(batch, work.settings, tokenizer)


def _encode_batch(
    batch: list[tuple[str, str, str]], settings: PrepareSettings, tokenizer: Tokenizer
) -> Iterator[tuple[str, Document]]:
    encoded = tokenizer.encode_batch([text for _, _, text in batch])
    for (source, language, text), tokens in zip(batch, encoded, strict=True):
        digest = document_hash(text)
        is_held_out = _draw(digest, 0) < settings.validation_share
        document = Document(tokens, source, language, f"{digest:032x}")
        yield ("validation" if is_held_out else "train"), document


def _draw(digest: int, seed: int) -> float:
    """A number in [0, 1) keyed by the document and a seed."""
    return xxhash.xxh3_64_intdigest(f"{digest},{seed}".encode()) / 2**64


def _temporary(work: Work, kind: str, partition: Partition) -> Path:
    return work.path(kind, partition.number).with_suffix(f".tmp-{os.getpid()}")


def _commit(work: Work, kind: str, partition: Partition) -> None:
    os.replace(_temporary(work, kind, partition), work.path(kind, partition.number))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


def run_guarded(function: Any, *arguments: Any) -> dict[str, Any]:
    """The function's result, or its error as data, so that all errors are reported together."""
    try:
        return function(*arguments)
    except GlmDistError as error:
        return {"error": str(error)}
