import json
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
import sentencepiece
from foreign_tokenizer import save_tokenizer
from pydantic import ValidationError

from glm_dist.data.order import RowOrder
from glm_dist.data.pipeline import RowSource, build_order
from glm_dist.data.prepare.settings import PrepareSettings, SourceSettings
from glm_dist.data.row_table import RowTable
from glm_dist.data.rows import RowBuilder, RowSettings
from glm_dist.data.shards import TokenDataset
from glm_dist.errors import DataError
from glm_dist.objective import ObjectiveSettings
from glm_dist.tokenizer import TokenizerSettings

pytestmark = pytest.mark.ray
WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have".split()
)


@pytest.fixture(scope="module")
def ray_two_cpus():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        texts = [" ".join(rng.choice(WORDS, size=rng.integers(5, 400))) + "." for _ in range(200)]
        texts[7] = texts[3]
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "a.jsonl").open("a").write('\n{"text": "这是一个中文句子，用来测试语言。"}\n{broken')
    return folder


def settings(corpus, output, **changes):
    values = {
        "output": str(output),
        "sources": [
            SourceSettings(name="first", path=str(corpus / "a.jsonl")),
            SourceSettings(name="second", path=str(corpus / "b.jsonl")),
        ],
        "tokenizer": TokenizerSettings(vocab_size=350),
        "validation_share": 0.1,
        "partition_bytes": 65536,
        **changes,
    }
    return PrepareSettings(**values)


def prepare(chosen):
    from glm_dist.data.prepare.pipeline import prepare

    return prepare(chosen)


@pytest.fixture(scope="module")
def dataset(ray_two_cpus, corpus, tmp_path_factory):
    return prepare(settings(corpus, tmp_path_factory.mktemp("data") / "set"))


def test_every_document_stands_once_in_the_shards_and_what_was_left_out_is_counted(dataset):
    total = dataset.num_documents("train") + dataset.num_documents("validation")
    assert total == 2 * 199 + 1
    report = dataset.manifest["report"]
    assert (report["duplicates"], report["bad_records"]) == (2, 1)
    assert dataset.languages == ["en", "zh"]
    rejected = (dataset.folder / "rejected.jsonl").read_text().splitlines()
    assert "not JSON" in json.loads(rejected[0])["reason"]


def test_shards_open_with_plain_pyarrow_and_the_tokenizer_with_plain_sentencepiece(dataset):
    entry = dataset.manifest["splits"]["train"][0]
    table = pa.ipc.open_file(str(dataset.folder / entry["file"])).read_all()
    assert table.schema.field("tokens").type == pa.list_(pa.uint16())
    plain = sentencepiece.SentencePieceProcessor(model_file=str(dataset.folder / "tokenizer.model"))
    text = plain.decode(table["tokens"][0].as_py())
    assert set(text.rstrip(".").split()) <= set(WORDS)
    assert np.array_equal(dataset.tokens("train", 0), table["tokens"][0].as_py())


def test_the_tokenizer_of_a_published_model_can_be_taken(ray_two_cpus, corpus, tmp_path):
    folder = save_tokenizer(tmp_path, WORDS)
    dataset = prepare(settings(corpus, tmp_path / "set", tokenizer_path=str(folder)))
    assert (dataset.folder / "tokenizer.json").read_bytes() == (
        folder / "tokenizer.json"
    ).read_bytes()
    text = dataset.tokenizer.decode(dataset.tokens("train", 0))
    assert set(text.rstrip(".").split()) <= set(WORDS)


def test_a_tokenizer_is_extended_by_pieces_of_the_sources(dataset, ray_two_cpus, tmp_path):
    (tmp_path / "zh.txt").write_text("清单按次序给出条目。\n\n" * 200, encoding="utf-8")
    source = {"name": "zh", "path": str(tmp_path / "zh.txt"), "language": "zh"}
    chosen = PrepareSettings(
        output=str(tmp_path / "set"), sources=[source], extend_tokenizer=str(dataset.folder),
        tokenizer=TokenizerSettings(vocab_size=400),
    )  # fmt: skip
    tokenizer = prepare(chosen).tokenizer
    assert tokenizer.vocab_size > dataset.tokenizer.vocab_size
    assert tokenizer.encode(WORDS[0]).tolist() == dataset.tokenizer.encode(WORDS[0]).tolist()
    assert tokenizer.encode("清单").max() >= dataset.tokenizer.vocab_size
    with pytest.raises(ValidationError, match="give one of them"):
        PrepareSettings(tokenizer_path="a", extend_tokenizer="b")


def test_the_same_input_gives_the_same_bytes_again(dataset, corpus, tmp_path):
    again = prepare(settings(corpus, tmp_path / "again"))
    assert again.fingerprint == dataset.fingerprint


def test_a_killed_run_goes_on_without_redoing_finished_parts(
    dataset, corpus, tmp_path, monkeypatch
):
    from glm_dist.data.prepare import pipeline

    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_manifest", die)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings(corpus, tmp_path / "killed"))
    shard = tmp_path / "killed" / "train-00000.arrow"
    written = shard.stat().st_mtime_ns
    with pytest.raises(DataError, match="no dataset"):
        TokenDataset.open(tmp_path / "killed")
    assert prepare(settings(corpus, tmp_path / "killed")).fingerprint == dataset.fingerprint
    assert shard.stat().st_mtime_ns == written


def test_excluded_documents_are_left_out_and_counted_by_file(ray_two_cpus, corpus, tmp_path):
    chosen = settings(corpus, tmp_path / "set", exclude=[str(corpus / "b.jsonl")])
    report = prepare(chosen).manifest["report"]
    assert report["excluded"] == {str(corpus / "b.jsonl"): 199}


def test_too_many_bad_records_are_an_error_with_the_worst_named(ray_two_cpus, corpus, tmp_path):
    with pytest.raises(DataError, match=r"(?s)1 of .* max_bad_share 0.*a\.jsonl"):
        prepare(settings(corpus, tmp_path / "set", max_bad_share=0.0))


def test_a_folder_of_other_settings_is_not_overwritten_unasked(dataset, corpus):
    with pytest.raises(DataError, match="overwrite=true"):
        prepare(settings(corpus, dataset.folder, validation_share=0.2))


def test_a_setting_of_a_later_release_leaves_datasets_as_they_are(dataset, corpus):
    class Later(PrepareSettings):
        added: str | None = None

    chosen = settings(corpus, dataset.folder)
    same = Later(**chosen.model_dump(exclude_unset=True))
    assert prepare(same).fingerprint == dataset.fingerprint
    with pytest.raises(DataError, match="other settings"):
        prepare(same.model_copy(update={"added": "given"}))


def test_a_flipped_bit_and_a_missing_shard_are_refused_by_name(dataset, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(dataset.folder, copy)
    name = dataset.manifest["splits"]["train"][0]["file"]
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(DataError, match=name):
        TokenDataset.open(copy).verify()
    (copy / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        TokenDataset.open(copy)


def test_the_tokenizer_of_another_dataset_is_refused(dataset, corpus, tmp_path):
    import shutil

    other = prepare(
        settings(corpus, tmp_path / "other", tokenizer=TokenizerSettings(vocab_size=330))
    )
    copy = tmp_path / "copy"
    shutil.copytree(dataset.folder, copy)
    shutil.copy(other.folder / "tokenizer.model", copy)
    with pytest.raises(DataError, match="not the one these shards were made with"):
        _ = TokenDataset.open(copy).tokenizer


def make_source(dataset, folder, shares=None, **objective):
    return RowSource(
        str(dataset.folder),
        dataset.fingerprint,
        str(folder),
        RowSettings(sequence_length=96, source_shares=shares or {}),
        ObjectiveSettings(**objective),
        seed=3,
    )


def test_rows_are_full_valid_and_the_same_wherever_they_are_built(dataset, tmp_path):
    source = make_source(dataset, tmp_path / "tables")
    order = build_order(source, 300)
    again = build_order(make_source(dataset, tmp_path / "tables2"), 300)
    assert order.sha256 == again.sha256
    builder = RowBuilder(dataset, "train", source.rows, source.objective, source.seed)
    rows = builder.build(np.arange(40), order.pieces(np.arange(40)))
    one = builder.build(np.array([17]), order.pieces(np.array([17])))
    for name, array in rows.items():
        assert np.array_equal(array[17], one[name][0]), name
    padding = (rows["segment_ids"] == 0).mean()
    assert padding < 0.15
    assert (rows["loss_mask"].sum(1) > 0).all()
    assert (rows["position_ids"] < 96).all()


def test_an_epoch_holds_every_token_of_the_split_once(dataset, tmp_path):
    source = make_source(dataset, tmp_path / "tables")
    order = build_order(source, 1)
    lengths = dataset.lengths("train")
    seen = [np.zeros(length, dtype=int) for length in lengths]
    for _, pieces in order.pieces(np.arange(order.tables[0].num_rows)):
        for document, start, length in pieces:
            seen[document][start : start + length] += 1
    assert all((counts == 1).all() for counts in seen)


def test_a_source_with_a_share_has_each_document_once_in_so_many_epochs(dataset, tmp_path):
    rare = dataset.sources[0]
    source = make_source(dataset, tmp_path / "tables", {rare: 0.25})
    builder = RowBuilder(dataset, "train", source.rows, source.objective, source.seed)
    lengths = dataset.lengths("train")
    is_rare = np.array([dataset.source_of("train", n) == rare for n in range(len(lengths))])
    by_epoch = np.zeros((8, len(lengths)), dtype=int)
    for epoch in range(8):
        for number in range(len(dataset.shards("train"))):
            for piece in chain.from_iterable(builder.pack_shard(epoch, number)):
                by_epoch[epoch, piece.document] += piece.length
    assert (by_epoch[:, ~is_rare] == lengths[~is_rare]).all()
    for first in range(5):  # any four epochs in a row
        assert (by_epoch[first : first + 4, is_rare].sum(axis=0) == lengths[is_rare]).all()
    shares = (by_epoch[:, is_rare] > 0).mean(axis=1)
    assert is_rare.sum() > 20
    assert (abs(shares - 0.25) < 0.1).all()


def test_a_share_that_is_not_set_changes_no_key(dataset, tmp_path):
    plain = make_source(dataset, tmp_path / "tables")
    assert plain.key(0)["rows"] == {"sequence_length": 96, "min_piece_tokens": 32}
    assert make_source(dataset, tmp_path, {dataset.sources[0]: 0.5}).key(0) != plain.key(0)


def test_a_table_of_other_settings_is_not_used(dataset, tmp_path):
    first = build_order(make_source(dataset, tmp_path / "tables"), 1).sha256
    other = build_order(make_source(dataset, tmp_path / "tables", token_mask_ratio=0.3), 1)
    assert first != other.sha256
    assert isinstance(other, RowOrder)
    assert RowTable(tmp_path / "tables" / "epoch-00000").sha256 == other.tables[0].sha256
