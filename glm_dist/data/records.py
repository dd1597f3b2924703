"""Records with named or numbered fields, out of the files that labelled data comes in.

It stands apart from `prepare`, whose reader wants one text of each record and may leave bad ones
out: of labelled examples none is left out, and what is wrong is said with file and line.
"""

import csv
import io
import itertools
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from glm_dist.data.prepare.readers import Tabs, open_file
from glm_dist.data.prepare.sources import COMPRESSIONS, FORMATS
from glm_dist.errors import DataError

LARGEST_CELL = 1 << 26
KNOWN_FORMATS = {
    **{ending: kind for ending, kind in FORMATS.items() if kind != "text"},
    ".conll": "conll",
    ".bio": "conll",
    ".bmes": "conll",
    ".conllu": "conllu",
    ".txt": "lines",
}
CONLLU_COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""https://universaldependencies.org/format.html"""


@dataclass(frozen=True)
class Record:
    """One record and where it stands; a table's columns are known by name and by number."""

    values: Mapping[str | int, Any]
    place: str


def format_of(path: str) -> str:
    """The format a file's name tells.

    Raises:
        DataError: when it tells none.
    """
    name = path
    for ending in (*COMPRESSIONS, ".zip"):
        name = name.removesuffix(ending)
    kind = KNOWN_FORMATS.get(Path(name).suffix.lower())
    if kind is None:
        raise DataError(
            f"{path}: its ending does not tell its format; set task.format to one of "
            f"{', '.join(sorted(set(KNOWN_FORMATS.values())))}"
        )
    return kind


def read_records(
    path: str, kind: str, has_header: Callable[[Sequence[list[str]]], bool]
) -> Iterator[Record]:
    """The records of one file, in order.

    Args:
        path: of the file, which may be compressed.
        kind: one of the formats.
        has_header: whether the first of some rows of a table names its columns.

    Raises:
        DataError: when the file cannot be read, naming it and the line.
    """
    readers: dict[str, Callable[[str], Iterator[Record]]] = {
        "csv": lambda path: _table(path, csv.excel, has_header),
        "tsv": lambda path: _table(path, Tabs, has_header),
        "jsonl": _json_lines,
        "json": _json,
        "parquet": _parquet,
        "conll": _conll,
        "conllu": _conllu,
        "lines": _lines,
    }
    try:
        yield from readers[kind](path)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as {kind} ({error}); mend it") from None


def _text(path: str) -> Iterator[str]:
    """Lines with their ends; a byte order mark is no part of the first."""
    if path.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(names) != 1:
                raise DataError(f"{path}: holds {len(names)} files; take out the one to read")
            with archive.open(names[0]) as file:
                yield from io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        return
    with open_file(path) as file:
        yield from io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


SNIFFED_ROWS = 1000


def _table(
    path: str,
    dialect: type[csv.Dialect],
    has_header: Callable[[Sequence[list[str]]], bool],
) -> Iterator[Record]:
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(_text(path), dialect=dialect)
    rows = ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))
    first = list(itertools.islice(rows, SNIFFED_ROWS))
    names: list[str] = []
    if first and has_header([row for _, row in first]):
        names = [cell.strip() for cell in first.pop(0)[1]]
    for line, row in itertools.chain(first, rows):
        place = f"{path} line {line}"
        if names and len(row) != len(names):
            raise DataError(
                f"{place}: has {len(row)} columns and the header names {len(names)} "
                f"({', '.join(names)}); mend the line, or put texts that hold the separator in "
                "quotation marks"
            )
        values: dict[str | int, Any] = dict(enumerate(row))
        yield Record(values | dict(zip(names, row, strict=False)), place)


def _json_lines(path: str) -> Iterator[Record]:
    for number, line in enumerate(_text(path), start=1):
        if line.strip():
            place = f"{path} line {number}"
            yield Record(_object(_parse(line, place), place), place)


def _json(path: str) -> Iterator[Record]:
    """A list of objects, an object of objects, or SQuAD's nesting of questions in paragraphs."""
    document = _parse("".join(_text(path)), path)
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document = document["data"]
    if isinstance(document, dict):
        document = list(document.values())
    for number, value in enumerate(document if isinstance(document, list) else [document]):
        place = f"{path} record {number}"
        record = _object(value, place)
        if "paragraphs" in record:
            yield from _questions(record, place)
        else:
            yield Record(record, place)


def _questions(article: Mapping[Any, Any], place: str) -> Iterator[Record]:
    for paragraph in article["paragraphs"]:
        for question in paragraph.get("qas", []):
            answers = [answer["text"] for answer in question.get("answers") or []]
            values = {**question, "context": paragraph["context"], "answers": answers}
            yield Record(values, f"{place} question {question.get('id', '')}".rstrip())


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON ({error}); mend it") from None


def _object(value: Any, place: str) -> Mapping[Any, Any]:
    if isinstance(value, list):
        return dict(enumerate(value))
    if not isinstance(value, dict):
        raise DataError(f"{place}: is a {type(value).__name__}; a record is a JSON object")
    return value


def _parquet(path: str) -> Iterator[Record]:
    with open_file(path) as file:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches():
            for values in batch.to_pylist():
                yield Record(dict(enumerate(values.values())) | values, f"{path} row {number}")
                number += 1


def _sentences(path: str) -> Iterator[tuple[int, list[list[str]]]]:
    """Line number and columns of the tokens of each sentence; blank lines stand between."""
    first, sentence = 0, list[list[str]]()
    for number, line in enumerate(itertools.chain(_text(path), [""]), start=1):
        # A line may begin with a space or a tab that is the token; what follows is no token then.
        columns = line.split()
        if columns and columns[0] != "-DOCSTART-":
            first = first or number
            sentence.append(columns)
        elif sentence and not columns:
            yield first, sentence
            first, sentence = 0, []


def _conll(path: str) -> Iterator[Record]:
    """Sentences as lists a column; the first is `tokens`, the last `tags`."""
    for line, sentence in _sentences(path):
        width = len(sentence[0])
        for offset, columns in enumerate(sentence):
            if len(columns) != width or width < 2:
                raise DataError(
                    f"{path} line {line + offset}: has {len(columns)} columns where the sentence "
                    f"began with {width}; a token and its tag stand on each line"
                )
        columns_of = [list(column) for column in zip(*sentence, strict=True)]
        named = {"tokens": columns_of[0], "tags": columns_of[-1]}
        yield Record(dict(enumerate(columns_of)) | named, f"{path} line {line}")


def _conllu(path: str) -> Iterator[Record]:
    """Sentences as lists a column under their names; ranges and empty nodes are left out."""
    first, sentence = 0, list[list[str]]()
    for number, line in enumerate(itertools.chain(_text(path), [""]), start=1):
        columns = line.rstrip("\r\n").split("\t")
        if len(columns) == len(CONLLU_COLUMNS):
            first = first or number
            if columns[0].isdigit():
                sentence.append(columns)
        elif not line.strip() and sentence:
            lists = [list(column) for column in zip(*sentence, strict=True)]
            named = dict(zip(CONLLU_COLUMNS, lists, strict=True))
            named |= {"tokens": named["form"], "tags": named["upos"]}
            yield Record(dict[Any, Any](enumerate(lists)) | named, f"{path} line {first}")
            first, sentence = 0, []
        elif line.strip() and not line.startswith("#"):
            raise DataError(
                f"{path} line {number}: has {len(columns)} columns; CoNLL-U has "
                f"{len(CONLLU_COLUMNS)} between tabs"
            )


def _lines(path: str) -> Iterator[Record]:
    for number, line in enumerate(_text(path), start=1):
        yield Record({"text": line.strip(), 0: line.strip()}, f"{path} line {number}")


def pair_lines(paths: Mapping[str, str]) -> Iterator[Record]:
    """Line n of each of several files as one record, under the names of the files.

    Raises:
        DataError: when one has more lines than another.
    """
    readers = [read_records(path, "lines", lambda rows: False) for path in paths.values()]
    for records in itertools.zip_longest(*readers):
        short = [path for path, one in zip(paths.values(), records, strict=True) if one is None]
        if short:
            raise DataError(
                f"{', '.join(short)}: ends before the others ({', '.join(paths.values())}); "
                "aligned files have as many lines each"
            )
        texts = [record.values["text"] for record in records]
        yield Record(dict(zip(paths, texts, strict=True)), records[0].place)
