"""Every text in an evaluation file, whatever its format, without being told its columns.

Unlike the readers of training text, which take one text of each record and may leave a bad one out:
here too much is better than too little.
"""

import csv
import io
import itertools
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from glm_dist.data.prepare.readers import open_file
from glm_dist.data.prepare.sources import COMPRESSIONS
from glm_dist.errors import DataError

TAGGED = {".conll", ".conllu", ".bio", ".bioes", ".bmes", ".annotated"}
TEXT_LINES = 200  # of plain text that are also taken together, for what goes over line ends


def evaluation_texts(path: str) -> Iterator[str]:
    """Strings of JSON and parquet, cells of tables, sentences of tagged tokens, lines of text.

    Raises:
        DataError: when the file cannot be read, naming it.
    """
    try:
        if path.endswith(".parquet"):
            with open_file(path) as file:
                for batch in pq.ParquetFile(file).iter_batches():
                    yield from _strings(batch.to_pylist())
        elif path.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    with archive.open(name) as member:
                        yield from _texts_of(_ending(name), _as_lines(member))
        else:
            with open_file(path) as file:
                yield from _texts_of(_ending(path), _as_lines(file))
    except (OSError, EOFError, ValueError, csv.Error, zipfile.BadZipFile, pa.ArrowInvalid) as error:
        raise DataError(f"exclude: {path} cannot be read ({error}); mend it") from None


def _texts_of(ending: str, lines: Iterable[str]) -> Iterator[str]:
    if ending == ".json":
        yield from _strings(json.loads("".join(lines)))
    elif ending in (".jsonl", ".ndjson"):
        for line in lines:
            if line.strip():
                yield from _strings(json.loads(line))
    elif ending == ".csv":
        for row in csv.reader(lines):
            yield from row
    elif ending in TAGGED:
        yield from _sentences(lines)
    else:
        yield from _cells(lines)


def _cells(lines: Iterable[str]) -> Iterator[str]:
    """Cells between tabs, and stretches of whole lines."""
    remaining = iter(lines)
    while stretch := list(itertools.islice(remaining, TEXT_LINES)):
        yield "".join(stretch).strip()
        for line in stretch:
            yield from (cell.strip() for cell in line.split("\t"))


def _sentences(lines: Iterable[str]) -> Iterator[str]:
    """The first column down to each blank line; CoNLL-U has the token in its second."""
    tokens = list[str]()
    for line in itertools.chain(lines, [""]):
        columns = line.split("\t") if "\t" in line else line.split()
        if columns and columns[0].strip():
            is_numbered = len(columns) > 2 and columns[0].isdigit()
            tokens.append(columns[1] if is_numbered else columns[0])
        elif tokens:
            yield " ".join(tokens)
            tokens = []


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _as_lines(file: Any) -> Iterable[str]:
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")


def _ending(path: str) -> str:
    for compression in COMPRESSIONS:
        path = path.removesuffix(compression)
    return Path(path).suffix.lower()
