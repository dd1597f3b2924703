"""A task's examples as a dataset: whole samples in rows, repeated, mixed and found again."""

from collections import Counter

import numpy as np
import pytest

from glm_dist.data.rows import RowBuilder, RowSettings
from glm_dist.data.samples import build_row_builder
from glm_dist.data.shards import SCHEMA_VERSION, Document, write_manifest, write_shard
from glm_dist.errors import ConfigError, DataError
from glm_dist.objective import Mode, ObjectiveSettings
from glm_dist.tasks.dataset import build_dataset, check_examples, open_replay
from glm_dist.tasks.settings import ReplaySettings

ROWS = RowSettings(sequence_length=96)
EXAMPLES = [
    {"text": f"{word} film in town {number}", "label": "good" if number % 4 == 0 else "bad"}
    for number, word in enumerate(["great", "bad", "really bad", "a bad"] * 5)
]


@pytest.fixture
def classified(make_task):
    task, examples = make_task("classification", EXAMPLES)
    return task, {"train": examples[:16], "validation": examples[16:]}


def replayed(tokenizer, folder):
    """A pretraining dataset of one short document, told from answers by its language."""
    folder.mkdir()
    tokenizer.save(folder)
    text = tokenizer.encode("the film was really a story of one man and his dog in town " * 3)
    document = Document(text, source="s", language="xx", document_id="d")
    shard = write_shard(folder / "train-00000.arrow", [document] * 3, tokenizer.vocab_size)
    write_manifest(
        folder,
        {
            "schema_version": SCHEMA_VERSION,
            "tokenizer": {"sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size},
            "splits": {"train": [shard], "validation": []},
            "sources": {"s": 1},
            "languages": {"xx": 1},
        },
    )
    return folder


def test_rows_hold_the_samples_whole_and_side_by_side(classified, tmp_path):
    task, splits = classified
    dataset = build_dataset(tmp_path, task, splits, seed=0)
    builder = build_row_builder(dataset, "train", ROWS, ObjectiveSettings(), seed=0)
    packed = builder.pack_shard(0, 0)
    assert max(map(len, packed)) > 1
    rows = builder.build(np.arange(len(packed)), [(0, pieces) for pieces in packed])
    seen = []
    for row, pieces in enumerate(packed):
        for segment, piece in enumerate(pieces, start=1):
            here = rows["segment_ids"][row] == segment
            sample, _ = builder.sample(0, piece)
            for name in ("tokens", "targets", "loss_mask", "position_ids", "block_position_ids"):
                assert rows[name][row][here].tolist() == getattr(sample, name).tolist()
            seen.append(piece.document)
    assert sorted(seen) == list(range(16))


def test_a_dataset_is_made_again_when_and_only_when_something_changed(classified, tmp_path):
    task, splits = classified
    first = build_dataset(tmp_path, task, splits, seed=0)
    written = (tmp_path / "manifest.json").stat().st_mtime_ns
    assert build_dataset(tmp_path, task, splits, seed=0).fingerprint == first.fingerprint
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == written
    fewer = {**splits, "train": splits["train"][:-1]}
    other = build_dataset(tmp_path, task, fewer, seed=0)
    assert other.fingerprint != first.fingerprint
    assert other.num_documents("train") == 15


def test_rare_labels_are_repeated_as_far_as_asked(make_task, tmp_path):
    counts = {}
    for balance in (0.0, 0.5, 1.0):
        task, examples = make_task("classification", EXAMPLES, balance=balance)
        splits = {"train": examples, "validation": examples[:2]}
        dataset = build_dataset(tmp_path / str(balance), task, splits, seed=0)
        builder = build_row_builder(dataset, "train", ROWS, ObjectiveSettings(), seed=0)
        golds = Counter(builder.compared(n).gold for n in range(dataset.num_documents("train")))
        counts[balance] = golds[task.labels.index("good")] / golds[task.labels.index("bad")]
    assert counts[0.0] == pytest.approx(1 / 3)
    assert counts[0.0] < counts[0.5] < counts[1.0] == pytest.approx(1)


def test_pretraining_text_is_mixed_in_by_its_share(classified, tokenizer, tmp_path):
    task, splits = classified
    folder = replayed(tokenizer, tmp_path / "text")
    settings = ReplaySettings(dataset=str(folder), share=0.2)
    replay = open_replay(settings, task, ROWS, 0, folder)
    assert type(replay) is RowBuilder
    dataset = build_dataset(tmp_path / "mixed", task, splits, 0, replay, settings.share)
    builder = build_row_builder(dataset, "train", ROWS, ObjectiveSettings(), seed=0)
    documents = range(dataset.num_documents("train"))
    languages = Counter(dataset.language_of("train", document) for document in documents)
    assert languages == {"en": 16, "xx": 4}
    packed = [piece for row in builder.pack_shard(0, 0) for piece in row]
    modes = Counter(builder.sample(0, piece)[1] for piece in packed)
    assert modes[int(Mode.SUPERVISED)] == 16
    assert sum(modes.values()) == 20


def test_replayed_text_of_another_tokenizer_or_without_a_share_is_refused(
    classified, tokenizer, tmp_path
):
    task, _ = classified
    folder = replayed(tokenizer, tmp_path / "text")
    with pytest.raises(ConfigError, match=r"replay\.share: got 1\.0"):
        open_replay(ReplaySettings(dataset=str(folder), share=1.0), task, ROWS, 0, folder)


def test_all_that_is_wrong_with_the_examples_is_said_at_once(make_task):
    task, good = make_task("classification", EXAMPLES)
    _, bad = make_task("classification", [{"text": "", "label": "fine"}] * 8)
    with pytest.raises(DataError) as raised:
        check_examples(task, {"train": good, "test": bad})
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("line 1: the text is empty")
    assert lines[1].startswith("line 1: the label 'fine' is none that training has seen")
    assert lines[-1] == "and 6 more"


def test_a_sample_that_no_row_holds_is_refused_with_its_place(make_task, tmp_path):
    fields = {"text": "a [MASK]", "answers": [" ".join(["film"] * 20)]}
    for max_tokens, fits in ((96, True), (20, False)):
        task, examples = make_task("infilling", [fields], max_tokens=max_tokens)
        splits = {"train": examples, "validation": examples}
        if fits:
            assert build_dataset(tmp_path, task, splits, 0).num_documents("train") == 1
            continue
        with pytest.raises(DataError, match=r"line 1: .*rows\.sequence_length"):
            build_dataset(tmp_path, task, splits, 0)
