"""Labelled data as it comes: every format gives the same records, and says where one is wrong."""

import gzip
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glm_dist.data.records import format_of, pair_lines, read_records
from glm_dist.errors import DataError

ROWS = [("great, really", "1"), ("不好\n看", "0"), ('a "word"', "1")]
OBJECTS = [{"text": text, "label": label} for text, label in ROWS]
JSONL = "\n".join(json.dumps(one, ensure_ascii=False) for one in OBJECTS).encode()
CSV = 'text,label\n"great, really",1\n"不好\n看",0\n"a ""word""",1\n'.encode()


def read(path, *, header=True):
    return list(read_records(str(path), format_of(str(path)), lambda rows: header))


def write(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", CSV),
        ("a.csv", b"\xef\xbb\xbf" + CSV),
        ("a.csv.gz", gzip.compress(CSV, mtime=0)),
        ("a.jsonl", JSONL),
        ("a.json", json.dumps(OBJECTS).encode()),
        ("a.json", json.dumps({"data": OBJECTS}).encode()),
        ("a.json", json.dumps({"x": OBJECTS[0], "y": OBJECTS[1], "z": OBJECTS[2]}).encode()),
    ],
)
def test_every_format_gives_the_same_fields(tmp_path, name, data):
    records = read(write(tmp_path, name, data))
    assert [(one.values["text"], one.values["label"]) for one in records] == ROWS


def test_parquet_gives_its_columns_by_name_and_number(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(OBJECTS), path)
    records = read(path)
    assert [(one.values[0], one.values["label"]) for one in records] == ROWS


def test_a_zipped_file_is_read_and_an_archive_of_several_is_refused(tmp_path):
    path = tmp_path / "a.jsonl.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jsonl", JSONL)
    assert [one.values["label"] for one in read(path)] == ["1", "0", "1"]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b.jsonl", JSONL)
    with pytest.raises(DataError, match="holds 2 files"):
        read(path)


def test_quotation_marks_between_tabs_are_characters_like_others(tmp_path):
    records = read(write(tmp_path, "a.tsv", '"a\tb\n\nc"d\te\n'), header=False)
    assert [(one.values[0], one.values[1], one.place[-6:]) for one in records] == [
        ('"a', "b", "line 1"),
        ('c"d', "e", "line 3"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", "text,label\nx,1\ny,too,many\n", "line 3: has 3 columns.*names 2"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("a.jsonl", '{"a": 1}\n7\n', "line 2: is a int"),
        ("a.conll", "EU B-ORG\nrejects\n", "line 2: has 1 columns.*began with 2"),
        ("a.conllu", "1\tThe\n", "line 1: has 2 columns"),
        ("a.tsv", b"\xff\xfe\n", "cannot be read as tsv"),
        ("a.json.gz", "no gzip", "cannot be read as json"),
        ("a.xyz", "x", "ending does not tell its format; set task.format"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_line(tmp_path, name, data, message):
    with pytest.raises(DataError, match=rf"(?s)a\.{name[2:]}.*{message}"):
        read(write(tmp_path, name, data))


def test_squad_json_gives_one_record_a_question_with_all_its_answers(tmp_path):
    questions = [
        {"id": "q1", "question": "Who?", "answers": [{"text": "Ada"}, {"text": "Ada L."}]},
        {"id": "q2", "question": "When?", "answers": []},
    ]
    article = {"title": "t", "paragraphs": [{"context": "Ada L. wrote.", "qas": questions}]}
    path = write(tmp_path, "squad.json", json.dumps({"version": "1.1", "data": [article]}))
    first, second = read(path)
    assert first.values["context"] == second.values["context"] == "Ada L. wrote."
    assert first.values["answers"] == ["Ada", "Ada L."]
    assert second.values["answers"] == []
    assert first.place.endswith("question q1")


@pytest.mark.parametrize("ending", ["conll", "bio", "bmes"])
def test_conll_gives_sentences_whatever_their_tags_and_columns(tmp_path, ending):
    text = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nvotes VBZ O\n\n \n中 NR B-LOC\n国 NR E-LOC\n"
    first, second = read(write(tmp_path, f"a.{ending}", text))
    assert first.values["tokens"] == ["EU", "votes"]
    assert first.values["tags"] == ["B-ORG", "O"]
    assert first.values[1] == ["NNP", "VBZ"]
    assert second.values["tokens"] == ["中", "国"]
    assert (first.place[-6:], second.place[-6:]) == ("line 3", "line 7")


def test_conllu_gives_words_without_ranges_and_empty_nodes(tmp_path):
    def line(number, form, tag):
        return "\t".join([number, form, form.lower(), tag, *"______"])

    lines = ["# text = Don't go", line("1-2", "Don't", "_"), line("1", "Do", "AUX")]
    lines += [line("2", "n't", "PART"), line("2.1", "x", "X"), line("3", "go", "VERB"), ""]
    (sentence,) = read(write(tmp_path, "a.conllu", "\n".join(lines)))
    assert sentence.values["tokens"] == ["Do", "n't", "go"]
    assert sentence.values["tags"] == sentence.values["upos"] == ["AUX", "PART", "VERB"]
    assert sentence.values["lemma"] == ["do", "n't", "go"]


def test_aligned_lines_are_paired_and_a_short_file_is_named(tmp_path):
    english = write(tmp_path, "a.en.gz", gzip.compress(b"one\ntwo\n"))
    german = write(tmp_path, "a.de", "eins\nzwei\n")
    paths = {"source": str(english), "target": str(german)}
    assert [one.values for one in pair_lines(paths)] == [
        {"source": "one", "target": "eins"},
        {"source": "two", "target": "zwei"},
    ]
    german.write_text("eins\n")
    with pytest.raises(DataError, match=r"a\.de: ends before the others"):
        list(pair_lines(paths))
