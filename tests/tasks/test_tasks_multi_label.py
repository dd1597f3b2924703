"""Several labels of a text: as they lie in files, as targets, and as answers over thresholds."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from glm_dist.data.rows import RowSettings
from glm_dist.data.samples import build_row_builder
from glm_dist.errors import DataError
from glm_dist.model import ModelSettings, build_model
from glm_dist.objective import ObjectiveSettings
from glm_dist.tasks import TASKS, Reply
from glm_dist.tasks.dataset import build_dataset, check_examples
from glm_dist.tasks.examples import read_examples
from glm_dist.train.stream import to_batch

MADE = [
    {"text": "the film was really good", "labels": ["good", "film"]},
    {"text": "a dog in town", "labels": []},
    {"text": "how are you", "labels": ["town"]},
]


def read(path, **settings):
    return read_examples(TASKS["multi_label"].Settings(train=str(path), **settings), "train")


def test_labels_come_as_lists_of_json_lines_or_in_a_cell_of_a_table(make_task, tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, MADE)))
    table = tmp_path / "a.csv"
    rows = [f"{one['text']},{' ; '.join(one['labels'])}" for one in MADE]
    table.write_text("\n".join(["text,tags", *rows]))
    wide = tmp_path / "b.csv"
    wide.write_text("text,one,two\nthe film was really good,film,good\na dog,,\nhow,town,\n")
    given = [
        (read(lines), {}),
        (read(table, separator=";"), {"separator": ";"}),
        (read(wide, columns={"labels": ["one", "two"]}), {}),
    ]
    for examples, settings in given:
        task, _ = make_task("multi_label", [one.fields for one in examples], **settings)
        assert list(task.labels) == ["film", "good", "town"]
        assert [task.gold(one) for one in examples] == [["film", "good"], [], ["town"]]
        assert not any(map(task.problems, examples))


def test_what_stands_in_the_files_may_mean_another_label_or_none(make_task):
    tags = [{"text": "one man", "labels": ["B-person", "I-person", "O"]}]
    renamed = {"B-person": "person", "I-person": "person", "O": None}
    task, (example,) = make_task("multi_label", tags, renamed=renamed)
    assert list(task.labels) == task.gold(example) == ["person"]


def test_an_unknown_label_or_none_at_all_is_named_with_its_line(make_task, tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [*MADE, {"text": "x", "labels": ["good", "fine"]}, {"text": "y", "labels": None}]
    path.write_text("\n".join(map(json.dumps, lines)))
    task, _ = make_task("multi_label", MADE)
    with pytest.raises(DataError) as error:
        check_examples(task, {"test": read(path)})
    first, second = str(error.value).splitlines()
    assert first.startswith(f"{path} line 4: the label 'fine' is none that training has seen")
    assert second.startswith(f"{path} line 5: the labels are missing")
    with pytest.raises(DataError, match="no example has a label"):
        make_task("multi_label", [{"text": "x", "labels": []}])


@pytest.mark.parametrize("pools_first", [True, False])
def test_the_loss_in_packed_rows_is_torchs_own(make_task, tmp_path, pools_first):
    task, examples = make_task("multi_label", MADE)
    task = type(task)(task.settings, task.binding.__class__(task.tokenizer, 32))
    splits = {"train": examples, "validation": examples}
    dataset = build_dataset(tmp_path, task, splits, seed=0)
    rows = RowSettings(sequence_length=32)
    builder = build_row_builder(dataset, "train", rows, ObjectiveSettings(), 0)
    packed = builder.pack_shard(0, 0)
    batch = to_batch(
        builder.build(np.arange(len(packed)), ((0, pieces) for pieces in packed)),
        torch.device("cpu"),
    )
    assert len(packed) < len(examples)
    shape = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "init_std": 0.5}
    shape |= {"vocab_size": task.tokenizer.vocab_size, "max_position_embeddings": 64}
    model = build_model(ModelSettings(preset=None, **shape, head=task.head)).eval()
    with torch.no_grad():
        found = model(*batch)
    scores = found.label_scores[batch.loss_mask > 0]
    truths = batch.targets[batch.loss_mask > 0]
    sets = {tuple(row) for row in truths.int().tolist()}
    assert sets == {(1, 1, 0), (0, 0, 0), (0, 0, 1)}
    expected = F.binary_cross_entropy_with_logits(scores, truths, reduction="sum") / 3
    torch.testing.assert_close(found.loss_sum, expected)


def test_labels_are_given_from_their_thresholds_on(make_task):
    settings = {"threshold": 0.6, "thresholds": {"town": 0.2}}
    task, (example, *_) = make_task("multi_label", MADE, **settings)
    scores = np.log([[0.7 / 0.3, 0.55 / 0.45, 0.25 / 0.75]])
    answer = task.answer(example, [Reply(scores=scores)])
    assert answer.value == ["film", "town"]
    assert answer.probabilities == pytest.approx((0.7, 0.55, 0.25))
    assert task.told(example, answer)["probs"]["good"] == pytest.approx(0.55)
    low = np.full((1, 3), -30.0) + np.array([0, 1, 0])
    assert task.answer(example, [Reply(scores=low)]).value == []
    forced, _ = make_task("multi_label", MADE, min_labels=1)
    assert forced.answer(example, [Reply(scores=low)]).value == ["good"]


def test_a_threshold_of_no_label_is_refused(make_task):
    with pytest.raises(ValueError, match="towns is none of the labels"):
        make_task("multi_label", MADE, labels=["film", "good"], thresholds={"towns": 0.1})
