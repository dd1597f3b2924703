"""Training text is cleared of evaluation text, whole and by n-grams, in any format."""

import gzip
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glm_dist.data.prepare.evaluation_text import evaluation_texts
from glm_dist.data.prepare.overlap import load_exclusions, write_exclusions
from glm_dist.data.prepare.settings import PrepareSettings, SourceSettings
from glm_dist.errors import DataError
from glm_dist.tokenizer import TokenizerSettings

ENGLISH = "the quick brown fox jumps over the lazy dog while seven wizards mix a potion at dawn"
CHINESE = "春江潮水连海平海上明月共潮生滟滟随波千万里何处春江无月明"


def found(tmp_path, texts, document, ngram=13):
    file = tmp_path / "evaluation.jsonl"
    file.write_text("\n".join(json.dumps({"any": text}) for text in texts))
    folder = tmp_path / f"hashes-{len(list(tmp_path.iterdir()))}"
    write_exclusions(folder, [str(file)], ngram)
    return bool(load_exclusions(folder).found_in(document)[0])


@pytest.mark.parametrize(
    ("document", "is_found"),
    [
        (f"Long ago {ENGLISH} and so on.", True),
        ("Long ago " + " ".join(ENGLISH.split()[2:15]) + " and so on.", True),
        ("Long ago " + " ".join(ENGLISH.split()[2:14]) + " and so on.", False),
        (ENGLISH.upper().replace(" ", ",\n"), True),
        (f"诗云：{CHINESE[:14]}，{CHINESE[14:]}。", True),
        (f"诗云：{CHINESE[3:16]}。", True),
        (f"诗云：{CHINESE[3:15]}。", False),
        ("Ｔｈｅ quick brown fox jumps over the lazy dog while seven wizards mix", True),
        ("something else entirely", False),
        ("", False),
    ],
)
def test_thirteen_words_or_characters_in_a_row_are_an_overlap(tmp_path, document, is_found):
    assert found(tmp_path, [ENGLISH, CHINESE], document) is is_found


def test_a_shorter_text_counts_where_it_stands_whole_and_is_no_common_phrase(tmp_path):
    title = "一种新的图像分割方法研究"
    assert found(tmp_path, [title], f"本文题为《{title}》，提出了")
    assert not found(tmp_path, [title], f"本文题为《{title[:-1]}》，提出了")
    assert not found(tmp_path, ["How are you?"], "He asked: How are you? I am fine.")
    assert found(tmp_path, ["How are you?"], "how are  you")


def test_zero_leaves_whole_texts_alone(tmp_path):
    assert found(tmp_path, [ENGLISH], ENGLISH, ngram=0)
    assert not found(tmp_path, [ENGLISH], f"{ENGLISH} again", ngram=0)


def test_every_set_is_named_by_itself(tmp_path):
    paths = []
    for name, text in [("en", ENGLISH), ("zh", CHINESE)]:
        paths.append(str(tmp_path / f"{name}.txt"))
        (tmp_path / f"{name}.txt").write_text(f"{text}\t1\n")
    write_exclusions(tmp_path / "hashes", paths, 13)
    exclusions = load_exclusions(tmp_path / "hashes")
    assert exclusions.names == paths
    assert exclusions.found_in(CHINESE).tolist() == [False, True]
    assert exclusions.found_in(ENGLISH + CHINESE).tolist() == [True, True]


def test_texts_are_found_in_every_format(tmp_path):
    files = {
        "a.tsv": b"label\ttext\n1\tgood film\n",
        "b.csv": b'"3","a title","said ""yes"""\n',
        "c.json": json.dumps({"data": [{"paragraphs": [{"context": "深"}]}]}).encode(),
        "d.bmes": "高 B-NAME\n勇 E-NAME\n\n男 O\n".encode(),
        "e.conllu": b"# c\n1\tDogs\tdog\tNOUN\n2\tbark\tbark\tVERB\n\n",
        "f.txt.gz": gzip.compress(b"a plain line\n"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "g.json.zip", "w") as archive:
        archive.writestr("inner.json", json.dumps([{"content": "你好"}]))
    pq.write_table(pa.table({"n": [1], "text": ["in a table"]}), tmp_path / "h.parquet")
    expected = {
        "a.tsv": "good film",
        "b.csv": 'said "yes"',
        "c.json": "深",
        "d.bmes": "高 勇",
        "e.conllu": "Dogs bark",
        "f.txt.gz": "a plain line",
        "g.json.zip": "你好",
        "h.parquet": "in a table",
    }
    for name, text in expected.items():
        assert any(text in found for found in evaluation_texts(str(tmp_path / name))), name
    (tmp_path / "i.json").write_text("{broken")
    with pytest.raises(DataError, match=r"i\.json cannot be read"):
        list(evaluation_texts(str(tmp_path / "i.json")))


@pytest.fixture(scope="module")
def ray_two_cpus():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def settings(folder, output, **changes):
    return PrepareSettings(
        output=str(output),
        sources=[SourceSettings(name="train", path=str(folder / "train.jsonl"))],
        tokenizer=TokenizerSettings(vocab_size=400),
        validation_share=0.1,
        partition_bytes=65536,
        **changes,
    )


@pytest.mark.ray
def test_shards_hold_no_evaluation_text_and_are_else_as_without_it(ray_two_cpus, tmp_path):
    from glm_dist.data.prepare.pipeline import prepare

    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(60)]
    clean = [" ".join(rng.choice(words, size=60)) for _ in range(150)]
    dirty = [f"{text} {ENGLISH}" for text in clean[:10]] + [CHINESE]
    (tmp_path / "test.tsv").write_text(f"1\t{ENGLISH}\n0\t{CHINESE}\n")
    (tmp_path / "other.tsv").write_text("1\tnothing that anybody wrote\n")
    names = [str(tmp_path / "test.tsv"), str(tmp_path / "other.tsv")]

    def write(texts):
        lines = (json.dumps({"text": text}) for text in texts)
        (tmp_path / "train.jsonl").write_text("\n".join(lines))

    write(dirty + clean)
    cleared = prepare(settings(tmp_path, tmp_path / "cleared", exclude=names))
    assert cleared.manifest["report"]["excluded"] == dict(zip(names, [11, 0], strict=True))
    write(clean)
    plain = prepare(settings(tmp_path, tmp_path / "plain"))
    assert cleared.manifest["splits"] == plain.manifest["splits"]
    assert cleared.tokenizer.sha256 == plain.tokenizer.sha256


@pytest.mark.ray
def test_shards_that_still_hold_some_are_refused(ray_two_cpus, tmp_path, monkeypatch):
    from glm_dist.data.prepare import pipeline

    texts = [f"{i} {ENGLISH}" if i == 3 else f"text number {i} of a few" for i in range(40)]
    lines = (json.dumps({"text": text}) for text in texts)
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "test.txt").write_text(ENGLISH)
    keep_first = pipeline._keep_first

    def keep_all(work, scans):
        kept, report = keep_first(work, scans)
        return [np.ones_like(part) for part in kept], report

    monkeypatch.setattr(pipeline, "_keep_first", keep_all)
    chosen = settings(tmp_path, tmp_path / "set", exclude=[str(tmp_path / "test.txt")])
    with pytest.raises(DataError, match=r"1 finished documents still repeat text of .*test\.txt"):
        pipeline.prepare(chosen)
    assert not (tmp_path / "set" / "manifest.json").exists()
