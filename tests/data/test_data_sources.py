import bz2
import gzip
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from glm_dist.data.prepare.readers import Bad, read_documents
from glm_dist.data.prepare.settings import PrepareSettings, SourceSettings
from glm_dist.data.prepare.sources import plan_partitions
from glm_dist.errors import DataError

RECORDS = [{"text": "first one"}, {"text": "zweites Stück"}, {"text": "第三\n行"}]
TEXTS = [record["text"] for record in RECORDS]
JSONL = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def read(path, **source_settings):
    sources = [SourceSettings(name="s", path=str(path), **source_settings)]
    settings = PrepareSettings(sources=sources, max_record_bytes=2000, partition_bytes=65536)
    partitions = plan_partitions(settings)
    return [
        item
        for partition in partitions
        for part in partition.parts
        for item in read_documents(part, settings)
    ]


def write(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", JSONL),
        ("a.jsonl.gz", gzip.compress(JSONL, mtime=0)),
        ("a.jsonl.bz2", bz2.compress(JSONL)),
        ("a.jsonl.zst", zstandard.compress(JSONL)),
        ("a.json", json.dumps(RECORDS).encode()),
        ("a.csv", 'id,text\n1,first one\n2,zweites Stück\n3,"第三\n行"\n'.encode()),
    ],
)
def test_every_format_gives_the_same_texts(tmp_path, name, data):
    assert read(write(tmp_path, name, data)) == TEXTS


def test_the_folder_of_outputs_is_known_where_no_variable_says_it(tmp_path, monkeypatch):
    monkeypatch.delenv("GLM_DIST_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".glm_dist").mkdir()
    write(tmp_path / ".glm_dist", "a.jsonl", JSONL)
    assert read("${GLM_DIST_HOME}/a.jsonl") == TEXTS


def test_parquet_gives_its_text_column_and_names_what_it_lacks(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "text": TEXTS}), path)
    assert read(path) == TEXTS
    pq.write_table(pa.table({"id": [1], "label": ["x"]}), path)
    with pytest.raises(DataError, match=r"a\.parquet.*no text column.*label.*text_field"):
        read(path)


def test_columns_without_a_header_are_counted(tmp_path):
    path = write(tmp_path, "a.tsv", "x\tfirst one\ny\tzweites Stück\nz\n".encode())
    *texts, bad = read(path, text_field=1)
    assert texts == TEXTS[:2]
    assert isinstance(bad, Bad)
    assert "line 3" in bad.place


def test_text_in_nested_json_is_joined_line_by_line(tmp_path):
    value = {
        "title": "t",
        "content": [{"chapter": "c", "paragraphs": ["a", "b"]}, {"content": "d"}],
    }
    assert read(write(tmp_path, "a.json", json.dumps(value).encode())) == ["a\nb\nd"]


def test_plain_text_is_cut_at_empty_lines_and_nothing_is_lost(tmp_path):
    paragraphs = [f"paragraph {i} " + "word " * 40 for i in range(2000)]
    path = write(tmp_path, "a.txt", "\n\n".join(paragraphs).encode())
    documents = read(path)
    assert len(documents) > 1
    assert all(len(document.encode()) <= 65536 for document in documents)
    joined = "\n\n".join(documents).split("\n\n")
    assert [line.strip() for line in joined] == [line.strip() for line in paragraphs]


def test_a_large_file_is_cut_into_partitions_without_losing_or_doubling_lines(tmp_path):
    lines = [json.dumps({"text": f"{i} " + "x" * (i % 300)}) for i in range(2000)]
    documents = read(write(tmp_path, "a.jsonl", "\n".join(lines).encode()))
    assert [int(document.split()[0]) for document in documents] == list(range(2000))


def test_a_folder_and_a_glob_are_read_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path, name, json.dumps({"text": name}).encode())
    write(tmp_path, "ignored.bin", b"x")
    assert read(tmp_path) == ["a.jsonl", "b.jsonl"]
    assert read(tmp_path / "*.jsonl") == ["a.jsonl", "b.jsonl"]


def test_a_missing_file_an_empty_folder_and_an_unknown_ending_are_all_named(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path, "a.xyz", b"x")
    sources = [
        SourceSettings(name="one", path=str(tmp_path / "nothing.txt")),
        SourceSettings(name="two", path=str(tmp_path / "empty")),
        SourceSettings(name="three", path=str(tmp_path / "a.xyz")),
    ]
    with pytest.raises(DataError) as caught:
        plan_partitions(PrepareSettings(sources=sources))
    for words in ("one: ", "nothing.txt does not exist", "two: ", "no text files", "a.xyz"):
        assert words in str(caught.value)


def test_a_damaged_gzip_member_is_an_error_that_names_the_file(tmp_path):
    data = bytearray(gzip.compress(JSONL * 200))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(DataError, match=r"a\.jsonl\.gz.*damaged"):
        read(write(tmp_path, "a.jsonl.gz", bytes(data)))
    with pytest.raises(DataError, match=r"b\.jsonl\.gz.*damaged"):
        read(write(tmp_path, "b.jsonl.gz", gzip.compress(JSONL)[:-9]))


def test_single_bad_records_are_items_with_place_and_reason(tmp_path):
    lines = [
        b'{"text": "good"}',
        b"{",
        b'{"text": "\xff"}',
        b'{"no": 1}',
        b'"' + b"y" * 5000 + b'"',
    ]
    items = read(write(tmp_path, "a.jsonl", b"\n".join([*lines, b'{"text": "last"}'])))
    assert [item for item in items if isinstance(item, str)] == ["good", "last"]
    reasons = [item.reason for item in items if isinstance(item, Bad)]
    assert len(reasons) == 4
    assert any("longer than max_record_bytes" in reason for reason in reasons)
    broken = read(write(tmp_path, "a.txt", b"fine\n\xff\xfe\n"))
    assert isinstance(broken[0], Bad)
    assert "UTF-8" in broken[0].reason


def read_apart(settings):
    """Documents, bad records and memory growth of a process that only reads."""
    program = (
        "import json, resource, sys\n"
        "from glm_dist.data.prepare.readers import Bad, read_documents\n"
        "from glm_dist.data.prepare.settings import PrepareSettings\n"
        "from glm_dist.data.prepare.sources import plan_partitions\n"
        "settings = PrepareSettings(**json.loads(sys.argv[1]))\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before, items = peak(), []\n"
        "for partition in plan_partitions(settings):\n"
        "    for part in partition.parts:\n"
        "        items += read_documents(part, settings)\n"
        "bad = [item.reason for item in items if isinstance(item, Bad)]\n"
        "print(json.dumps([len(items) - len(bad), bad, peak() - before]))\n"
    )
    command = [sys.executable, "-c", program, settings.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz"])
def test_a_line_of_100_megabytes_is_one_bad_record_and_never_in_memory(tmp_path, name):
    good = b"".join(json.dumps({"text": f"document {i}"}).encode() + b"\n" for i in range(150))
    path = tmp_path / name
    with (gzip.open if name.endswith(".gz") else open)(path, "wb") as file:
        file.write(good)
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b"\n" + good)
    settings = PrepareSettings(
        sources=[SourceSettings(name="one", path=str(path))], max_record_bytes=4_000_000
    )
    num_good, bad, grown_mib = read_apart(settings)
    assert len(bad) == 1
    assert "max_record_bytes 4,000,000" in bad[0]
    assert num_good == (2 if name == "a.txt" else 300)
    assert grown_mib < 64
