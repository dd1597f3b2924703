"""Examples out of a task's files: which column is which field, and what is wrong where.

All that is wrong with a file is said at once, each with its line; nothing is left out silently.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glm_dist.data.order import Permutation
from glm_dist.data.prepare.settings import SourceSettings
from glm_dist.data.prepare.sources import list_files
from glm_dist.data.records import Record, format_of, pair_lines, read_records
from glm_dist.errors import DataError
from glm_dist.tasks.settings import Column, Columns, TaskSettings

logger = logging.getLogger(__name__)

SHOWN_PROBLEMS = 10
HAN_LETTERS = re.compile(r"[\u3400-\u9fff]")
HAN_SHARE = 0.2
ALIASES = {
    "text": ("sentence", "review", "content", "text_a", "title", "comment", "文本", "内容", "评论"),
    "text_b": ("sentence2", "hypothesis", "premise2", "question2"),
    "label": ("class", "category", "sentiment", "target", "stars", "标签", "类别"),
    "labels": ("label", "tags", "classes", "categories", "genres", "topics", "标签", "类别"),
    "source": ("src", "article", "document", "dialogue", "text", "input"),
    "target": ("tgt", "summary", "highlights", "translation", "output", "title"),
    "question": ("query",),
    "answers": ("answer",),
    "context": ("passage", "paragraph"),
    "messages": ("conversations", "dialogue", "turns"),
}
"""Other usual names of a field, the likeliest first."""
_LABEL_VALUES_SHARE = 0.3
"""A column of labels has few different values: this share of its rows at most."""


@dataclass(frozen=True)
class Example:
    """One labelled example; the fields are those of its task."""

    fields: dict[str, Any]
    place: str

    def text(self, name: str) -> str:
        """A field as text, outer white space removed, several joined; empty where it lacks."""
        value = self.fields.get(name)
        parts = value if isinstance(value, list) else [value]
        return " ".join(str(part).strip() for part in parts if part is not None).strip()

    @property
    def language(self) -> str:
        """`zh` where Han characters are common in its texts, else `en`."""
        text = " ".join(_texts(list(self.fields.values())))[:1000]
        return "zh" if len(HAN_LETTERS.findall(text)) > HAN_SHARE * len(text) else "en"


def _texts(value: Any) -> Iterator[str]:
    """Whatever is text in a value, in lists and messages too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def read_examples(settings: TaskSettings, split: str, seed: int = 0) -> list[Example]:
    """The examples of a split, or none where the task names no files for it.

    Raises:
        DataError: for a wrong column or file, naming both and the columns that are there.
    """
    files = settings.files(split)
    if files is None:
        return []
    examples = list(_read(settings, files))
    if not examples:
        raise DataError(f"task.{split}: {files} holds no examples")
    return take(examples, settings.max_examples, seed)


def take(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """So many of them, drawn by the seed, in their own order."""
    if count is None or count >= len(examples):
        return list(examples)
    chosen = Permutation(len(examples), seed)(np.arange(count))
    return [examples[number] for number in sorted(chosen.tolist())]


def cut(
    examples: Sequence[Example], share: float, fields: Sequence[str], split: str, seed: int
) -> tuple[list[Example], list[Example]]:
    """What stays for training and what is held out, drawn by the seed.

    Examples that read the same in one of `fields` stay together, and so do those between which
    others make a chain, so that none is held out and learnt.

    Raises:
        DataError: when there are too few examples to share.
    """
    groups = _groups(examples, fields)
    different = list(dict.fromkeys(groups))
    count = max(1, round(share * len(different)))
    if count >= len(different):
        raise DataError(
            f"task.train: holds {len(different)} different example(s), too few to cut a {split} "
            f"part from; give more, or a task.{split} of their own"
        )
    order = Permutation(len(different), seed)(np.arange(count))
    held_out = {different[number] for number in order.tolist()}
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example, group in zip(examples, groups, strict=True):
        parts[group in held_out].append(example)
    return parts


def _groups(examples: Sequence[Example], fields: Sequence[str]) -> list[int]:
    """For each example the number of the first one that it is connected with."""
    leaders = list(range(len(examples)))

    def leader(number: int) -> int:
        while leaders[number] != number:
            number = leaders[number]
        return number

    for field in fields:
        seen: dict[str, int] = {}
        for number, example in enumerate(examples):
            first, second = sorted(
                (leader(seen.setdefault(example.text(field), number)), leader(number))
            )
            leaders[second] = first
    return [leader(number) for number in range(len(examples))]


def raise_problems(problems: Sequence[str]) -> None:
    """Say what is wrong with examples, the first of many.

    Raises:
        DataError: unless there are none.
    """
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        rest = [f"and {more} more"] if more > 0 else []
        raise DataError("\n".join([*problems[:SHOWN_PROBLEMS], *rest]))


def _read(settings: TaskSettings, files: str | dict[str, str]) -> Iterator[Example]:
    if isinstance(files, dict):
        paths = {name: _list(path)[0] for name, path in files.items()}
        for record in pair_lines(paths):
            yield _example(record, {name: name for name in paths})
        return
    for path in _list(files):
        kind = format_of(path) if settings.format == "auto" else settings.format
        sniffed = _Columns(settings)
        columns: dict[str, Columns] | None = None
        for record in read_records(path, kind, sniffed.has_header):
            if columns is None:
                columns = sniffed.find(record, path)
                told = ", ".join(f"{field} is {column!r}" for field, column in columns.items())
                logger.info("%s: %s", path, told)
            yield _example(record, columns)


def _list(path: str) -> list[str]:
    try:
        return [file for file, _ in list_files(SourceSettings(name="task", path=path))]
    except DataError as error:
        raise DataError(str(error).replace("source task: ", "task: ")) from None


def _example(record: Record, columns: Mapping[str, Columns]) -> Example:
    fields = {
        name: [record.values.get(one) for one in column]
        if isinstance(column, list)
        else record.values.get(column)
        for name, column in columns.items()
    }
    return Example(fields, record.place)


class _Columns:
    """Finds out what the columns of a file are."""

    def __init__(self, settings: TaskSettings) -> None:
        self._settings = settings
        self._rows: Sequence[list[str]] = ()
        self._has_header = False

    def has_header(self, rows: Sequence[list[str]]) -> bool:
        """Whether the first of some rows of a table names columns."""
        self._rows = rows
        self._has_header = self._looks_named(rows)
        return self._has_header

    def _looks_named(self, rows: Sequence[list[str]]) -> bool:
        settings = self._settings
        if settings.header is not None:
            return settings.header
        first = [cell.strip() for cell in rows[0]]
        mapped = [one for column in settings.columns.values() for one in _listed(column)]
        if any(isinstance(column, str) for column in mapped):
            return True
        names = {name.lower() for name in first}
        if not mapped:
            known = [name for field in settings.fields for name in (field, *ALIASES.get(field, ()))]
            return bool(names.intersection(known))
        # Numbered columns: a first label that never comes again is a name.
        label = settings.columns.get("label")
        if not isinstance(label, int) or label >= len(first) or len(rows) < 3:
            return False
        others = {row[label].strip() for row in rows[1:] if label < len(row)}
        return first[label] not in others and _are_few(len(others), len(rows))

    def find(self, record: Record, path: str) -> dict[str, Columns]:
        """Column of every field that is there, by what the settings say, by name, or by content.

        Raises:
            DataError: naming what is missing and what there is.
        """
        found: dict[str, Columns] = {}
        problems = []
        names = [key for key in record.values if isinstance(key, str)]
        for field in (*self._settings.fields, *self._settings.optional_fields):
            column = self._settings.columns.get(field, _named(field, names, found))
            there = [one for one in _listed(column) if one in record.values]
            if there:
                found[field] = there if isinstance(column, list) else there[0]
            elif field in self._settings.columns:
                problems.append(
                    f"task.columns: {field} is {column!r}, and {path} has no such column"
                )
        missing = [field for field in self._settings.fields if field not in found]
        if missing and not problems and not self._has_header:
            found |= self._by_content(missing)
            missing = [field for field in self._settings.fields if field not in found]
        if missing and not problems:
            problems.append(f"{path}: has no column for {', '.join(missing)}")
        if problems:
            numbers = sum(isinstance(key, int) for key in record.values)
            known = ", ".join(names) if names else f"{numbers} columns without names"
            raise DataError(
                "\n".join(problems) + f"\nthe columns there are {known}; say which is which, e.g. "
                f"task.columns='{{{self._settings.fields[0]}: {names[0] if names else 0}}}'"
            )
        return found

    def _by_content(self, missing: Sequence[str]) -> dict[str, Column]:
        """Text and label of a table without names: the label repeats, the text is the longest."""
        if not self._rows or set(missing) != {"text", "label"}:
            return {}
        columns = list(zip(*self._rows, strict=False))
        repeats = [max(Counter(column).values()) / len(column) for column in columns]
        lengths = [sum(map(len, column)) / len(column) for column in columns]
        label = max(range(len(columns)), key=lambda number: (repeats[number], -lengths[number]))
        others = [number for number in range(len(columns)) if number != label]
        if not others or not _are_few(len(set(columns[label])), len(self._rows)):
            return {}
        return {"text": max(others, key=lambda number: lengths[number]), "label": label}


def _are_few(num_values: int, num_rows: int) -> bool:
    """Whether a column with so many different values may hold labels."""
    return num_values <= max(2, _LABEL_VALUES_SHARE * num_rows)


def _listed(column: Columns | None) -> list[Column]:
    if column is None:
        return []
    return column if isinstance(column, list) else [column]


def _named(field: str, names: Sequence[str], taken: Mapping[str, Columns]) -> str | None:
    lowered = {name.lower(): name for name in reversed(names)}
    for name in (field, *ALIASES.get(field, ())):
        if name in lowered and lowered[name] not in taken.values():
            return lowered[name]
    return None
