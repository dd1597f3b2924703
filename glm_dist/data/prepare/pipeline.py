"""`prepare`: sources → exact duplicates → tokenizer → shards → manifest, as Ray Data tasks.

The stages run one after the other over all partitions; each partition's result is a finished file,
so a killed run goes on where it was. The result is a function of input and settings alone.
"""

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray.data

from glm_dist.config import dump_config, output_path
from glm_dist.data.pipeline import quiet_ray_data
from glm_dist.data.prepare.harvest import harvest
from glm_dist.data.prepare.overlap import write_exclusions
from glm_dist.data.prepare.readers import Bad
from glm_dist.data.prepare.settings import PrepareSettings, SourceSettings
from glm_dist.data.prepare.sources import Partition, plan_partitions
from glm_dist.data.prepare.work import (
    NO_DOCUMENT,
    Work,
    encode,
    run_guarded,
    scan,
)
from glm_dist.data.shards import SCHEMA_VERSION, SPLITS, TokenDataset, write_manifest
from glm_dist.errors import DataError
from glm_dist.tokenizer import Tokenizer, extend_tokenizer, find_tokenizer, train_tokenizer

Progress = Callable[[str, int, int, float], None]
"""(stage, bytes done, bytes in all, seconds since the stage began)."""

COMPRESSED_SAMPLE_FACTOR = 4  # a compressed file holds about this much text a byte
SETTINGS_THAT_DO_NOT_MATTER = {"output", "overwrite"}


def prepare(settings: PrepareSettings, progress: Progress = lambda *args: None) -> TokenDataset:
    """Make the dataset, or go on with it; an existing one of the same settings is returned.

    Raises:
        DataError: naming every file, source or folder that is wrong, and the remedy.
    """
    quiet_ray_data()
    settings = with_sample_corpus(settings)
    partitions = plan_partitions(settings)
    work = Work(output_path(settings.output), settings)
    _claim(work, partitions)
    if (work.folder / "manifest.json").exists():
        return TokenDataset.open(work.folder)
    if settings.exclude:
        write_exclusions(work.exclusions, settings.exclude, settings.exclude_ngram)

    shares = _sample_shares(settings, partitions)
    scans = _run("read", partitions, lambda part: scan(work, part, shares), progress)
    bad = _check_bad(work, scans)
    kept, dropped = _keep_first(work, scans)
    tokenizer = _tokenizer(work, scans)
    encoded = _run(
        "encode",
        partitions,
        lambda part: encode(work, part, kept[part.number], tokenizer),
        progress,
    )
    _check_clear(work, encoded)
    report = {**dropped, "bad_records": bad}
    write_manifest(work.folder, _manifest(work, encoded, report, tokenizer))
    shutil.rmtree(work.scratch)
    return TokenDataset.open(work.folder)


def with_sample_corpus(settings: PrepareSettings) -> PrepareSettings:
    """The settings, with this machine's Python documentation where no source is named."""
    if settings.sources:
        return settings
    path = output_path("data/python_documentation.jsonl")
    harvest(path)
    source = SourceSettings(name="python_documentation", path=str(path), language="en")
    return settings.model_copy(update={"sources": [source]})


def _claim(work: Work, partitions: Sequence[Partition]) -> None:
    """Make the folder ours, or find that it is: by a hash of inputs and of settings that are given.

    A setting that a later release adds, left at its default, does not make another dataset.
    """
    ignored = set() if work.settings.exclude else {"exclude_ngram"}
    ignored |= SETTINGS_THAT_DO_NOT_MATTER
    chosen = work.settings.model_dump(mode="json", exclude=ignored, exclude_defaults=True)
    inputs = [[(part.path, part.start, part.size) for part in one.parts] for one in partitions]
    key = hashlib.sha256(json.dumps([chosen, inputs], sort_keys=True).encode()).hexdigest()
    marker = work.folder / "key.txt"
    if marker.exists() and marker.read_text() != key:
        if not work.settings.overwrite:
            raise DataError(
                f"{work.folder}: holds a dataset of other settings or inputs; choose another "
                "output, or overwrite=true to throw it away"
            )
        shutil.rmtree(work.folder)
    if not (work.folder / "manifest.json").exists():
        work.scratch.mkdir(parents=True, exist_ok=True)
        (work.folder / "prepare.yaml").write_text(dump_config(work.settings), encoding="utf-8")
    marker.write_text(key)


def _run(
    stage: str,
    partitions: Sequence[Partition],
    function: Callable[[Partition], dict[str, Any]],
    progress: Progress,
) -> list[dict[str, Any]]:
    """The function over all partitions as Ray Data tasks; results in partition order."""
    total = sum(partition.num_bytes for partition in partitions)
    began, done = time.monotonic(), 0
    results, problems = [], []
    for result in _map(partitions, function):
        if "error" in result:
            problems.append(result["error"])
            continue
        results.append(result)
        done += result["input_bytes"]
        progress(stage, done, total, time.monotonic() - began)
    if problems:
        raise DataError("\n".join(sorted(set(problems))))
    return sorted(results, key=lambda result: result["number"])


def _map(
    partitions: Sequence[Partition], function: Callable[[Partition], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    def task(row: dict[str, Any]) -> dict[str, str]:
        return {"result": json.dumps(run_guarded(function, partitions[row["id"]]))}

    slots = ray.data.range(len(partitions), override_num_blocks=len(partitions))
    for row in slots.map(task).iter_rows():
        yield json.loads(row["result"])


def _sample_shares(settings: PrepareSettings, partitions: Sequence[Partition]) -> dict[str, float]:
    """Share of each source's documents that trains the tokenizer: the same bytes from each."""
    sizes: Counter[str] = Counter()
    for partition in partitions:
        for part in partition.parts:
            factor = COMPRESSED_SAMPLE_FACTOR if part.path.endswith((".gz", ".bz2", ".zst")) else 1
            sizes[part.source] += (part.end - part.start) * factor
    budget = settings.tokenizer.sample_bytes / max(1, len(sizes))
    return {source: min(1.0, budget / max(1, size)) for source, size in sizes.items()}


def _check_bad(work: Work, scans: Sequence[dict[str, Any]]) -> int:
    """Write bad records aside; refuse when they are too many."""
    bad = [Bad(**item) for one in scans for item in one["bad"]]
    total = len(bad) + sum(one["documents"] for one in scans)
    with open(work.folder / "rejected.jsonl", "w", encoding="utf-8") as file:
        for item in bad:
            file.write(json.dumps(vars(item), ensure_ascii=False) + "\n")
    if not total:
        raise DataError("the sources hold no text at all; look at their files and text_field")
    if len(bad) > work.settings.max_bad_share * total:
        worst = Counter((item.path, item.reason.split(":")[0]) for item in bad).most_common(5)
        lines = [f"  {path}: {count} x {reason}" for (path, reason), count in worst]
        raise DataError(
            f"{len(bad)} of {total} records are bad, more than max_bad_share "
            f"{work.settings.max_bad_share:g}; all are listed in {work.folder / 'rejected.jsonl'}; "
            "mend them or raise max_bad_share\n" + "\n".join(lines)
        )
    return len(bad)


def _as_keys(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes).view([("high", "<u8"), ("low", "<u8")]).ravel()


def _keep_first(
    work: Work, scans: Sequence[dict[str, Any]]
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """For each partition which documents stay: the first of equal ones, none of the excluded."""
    parts = [np.load(work.path("hashes", one["number"])) for one in scans]
    keys = _as_keys(np.concatenate([NO_DOCUMENT, *parts]))
    kept = np.zeros(len(keys), dtype=bool)
    kept[np.unique(keys, return_index=True)[1]] = True
    report: dict[str, Any] = {"duplicates": int((~kept).sum()), "excluded": {}}
    if work.settings.exclude:
        found = np.concatenate([np.load(work.path("overlaps", one["number"])) for one in scans])
        # A document that repeats several sets is counted by each.
        counts = (found & kept[:, None]).sum(axis=0).tolist()
        report["excluded"] = dict(zip(work.settings.exclude, counts, strict=True))
        kept &= ~found.any(axis=1)
    borders = np.cumsum([len(part) for part in parts])[:-1]
    return np.split(kept, borders), report


def _check_clear(work: Work, encoded: Sequence[dict[str, Any]]) -> None:
    """Refuse a dataset whose finished shards, read back, still repeat evaluation text."""
    problems = []
    for number, name in enumerate(work.settings.exclude):
        count = sum(one["overlaps"][number] for one in encoded)
        if count:
            problems.append(
                f"{work.folder}: {count} finished documents still repeat text of {name}; that is "
                "a fault of prepare_data: report it, and do not train on this folder"
            )
    if problems:
        raise DataError("\n".join(problems))


def _tokenizer(work: Work, scans: Sequence[dict[str, Any]]) -> Tokenizer:
    settings = work.settings
    finished = find_tokenizer(work.folder)
    if finished is not None:
        return Tokenizer.load(finished)
    if settings.tokenizer_path is not None:
        tokenizer = Tokenizer.load(Path(settings.tokenizer_path).expanduser())
    elif settings.extend_tokenizer is not None:
        folder = output_path(settings.extend_tokenizer)
        known = Tokenizer.load(find_tokenizer(folder / "model") or folder)
        tokenizer = extend_tokenizer(known, _sample_texts(work, scans), settings.tokenizer)
    else:
        tokenizer = train_tokenizer(_sample_texts(work, scans), settings.tokenizer)
    tokenizer.save(work.folder)
    return tokenizer


def _sample_texts(work: Work, scans: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of the sample, which is what SentencePiece learns from."""
    for one in scans:
        with open(work.path("sample", one["number"]), encoding="utf-8") as file:
            for line in file:
                yield from (text for text in json.loads(line).splitlines() if text)


def _manifest(
    work: Work,
    encoded: Sequence[dict[str, Any]],
    report: dict[str, Any],
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    totals: dict[str, Counter[str]] = {"sources": Counter(), "languages": Counter()}
    for one in encoded:
        for name, counter in totals.items():
            counter.update(one[name])
    return {
        "schema_version": SCHEMA_VERSION,
        "tokenizer": {"sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size},
        "splits": {split: [one[split] for one in encoded if split in one] for split in SPLITS},
        **{name: dict(sorted(counter.items())) for name, counter in totals.items()},
        "report": report,
        "settings": work.settings.model_dump(mode="json", exclude=SETTINGS_THAT_DO_NOT_MATTER),
    }
