"""How good a model is at its task while it is tuned: on dev samples, without any decoding.

Labels that are compared need only the loss of each one's words, heads the scores of their labels,
and of a text to be generated the loss says enough. What is added up over ranks are counts and
losses by example, so the figures do not depend on who held which row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glm_dist.data.rows import FILL_ROW_ID, RowBuilder, Rows
from glm_dist.data.samples import Compared, SampleRowBuilder
from glm_dist.errors import DataError
from glm_dist.evaluate.heldout import AllSum, Evaluator, Forward
from glm_dist.tasks import Binding, build_task, read_task
from glm_dist.tasks.labelling import Labelling, find_spans
from glm_dist.tasks.mixture import Mixture


@dataclass(frozen=True)
class DevRows:
    """This rank's dev rows, and what each sample of them is about."""

    rows: Rows
    compared: list[list[Compared]]
    """By row and sample."""
    micro_batch_size: int
    num_examples: int
    """Over all ranks."""

    def batches(self) -> Iterator[tuple[Rows, list[list[Compared]]]]:
        """Micro-batches and their samples."""
        for start in range(0, len(self.compared), self.micro_batch_size):
            part = slice(start, start + self.micro_batch_size)
            yield {name: array[part] for name, array in self.rows.items()}, self.compared[part]


class _Dev:
    """What all of them share: the error is what counts."""

    def __init__(self, dev: DevRows) -> None:
        self._dev = dev

    def score(self, figures: dict[str, float]) -> float:
        """The share of mistakes, of equals the loss."""
        return figures["dev/error"] + 1e-6 * figures["dev/loss"]

    def measure_more(self, forward: Forward, all_sum: AllSum) -> dict[str, float]:
        """Nothing more is known here."""
        return {}


class ChoiceDev(_Dev):
    """Which of several answers has the least loss."""

    def __init__(self, dev: DevRows, num_options: int, length_penalty: float) -> None:
        super().__init__(dev)
        self._num_options, self._length_penalty = num_options, length_penalty

    def measure(self, forward: Forward, all_sum: AllSum) -> dict[str, float]:
        """Accuracy, macro F1 and the loss of the right answers."""
        shape = (self._dev.num_examples, self._num_options)
        losses, golds = np.zeros(shape), np.zeros(shape)
        for rows, compared in self._dev.batches():
            token_losses, segments = forward(rows).losses, rows["segment_ids"]
            for row, samples in enumerate(compared):
                for segment, one in enumerate(samples, start=1):
                    if one.example >= self._dev.num_examples:
                        continue
                    here = segments[row] == segment
                    length = rows["loss_mask"][row][here].sum()
                    loss = token_losses[row][here].sum() / length**self._length_penalty
                    losses[one.example, one.option] += loss
                    if one.gold >= 0:
                        golds[one.example, one.gold] = 1
        both = all_sum(np.concatenate((losses.ravel(), golds.ravel())))
        losses, golds = both.reshape(2, *shape)
        is_known = golds.any(1)
        predicted, gold = losses.argmin(1)[is_known], golds.argmax(1)[is_known]
        loss = float((losses * (golds > 0))[is_known].sum() / max(1, is_known.sum()))
        return _label_figures(_confusion(gold, predicted, self._num_options), loss)


class LabelDev(_Dev):
    """Which label a head gives a text."""

    def __init__(self, dev: DevRows, num_labels: int) -> None:
        super().__init__(dev)
        self._num_labels = num_labels

    def measure(self, forward: Forward, all_sum: AllSum) -> dict[str, float]:
        """Accuracy, macro F1 and loss."""
        table, loss = np.zeros((self._num_labels, self._num_labels)), 0.0
        for rows, _ in self._dev.batches():
            outputs, mask = forward(rows), rows["loss_mask"] > 0
            assert outputs.label_scores is not None, "a classifier gives them"
            predicted = outputs.label_scores[mask].argmax(1)
            table += _confusion(rows["targets"][mask], predicted, self._num_labels)
            loss += float(outputs.losses.sum())
        sums = all_sum(np.append(table.ravel(), loss))
        table = sums[:-1].reshape(table.shape)
        return _label_figures(table, float(sums[-1] / max(1.0, table.sum())))


class LabelSetDev(_Dev):
    """Which labels a head gives a text that may have several."""

    THRESHOLDS = np.linspace(0.05, 0.95, 19)

    def __init__(self, dev: DevRows, num_labels: int) -> None:
        super().__init__(dev)
        self._num_labels = num_labels

    def measure(self, forward: Forward, all_sum: AllSum) -> dict[str, float]:
        """Micro and macro F1 under the one threshold with the best micro F1, and loss."""
        counts = np.zeros((len(self.THRESHOLDS), 3, self._num_labels))
        loss, num_texts = 0.0, 0
        for rows, _ in self._dev.batches():
            outputs, mask = forward(rows), rows["loss_mask"] > 0
            assert outputs.label_scores is not None, "a classifier gives them"
            there = rows["targets"][mask] > 0
            chances = 1 / (1 + np.exp(-outputs.label_scores[mask].astype(np.float64)))
            given = chances >= self.THRESHOLDS[:, None, None]
            counts[:, 0] += (given & there).sum(1)
            counts[:, 1] += given.sum(1)
            counts[:, 2] += there.sum(0)
            loss, num_texts = loss + float(outputs.losses.sum()), num_texts + int(mask.sum())
        sums = all_sum(np.append(counts.ravel(), [loss, num_texts]))
        hits, said, right = sums[:-2].reshape(counts.shape).transpose(1, 0, 2)
        micro = 2 * hits.sum(1) / np.maximum(1, (said + right).sum(1))
        macro = (2 * hits / np.maximum(1, said + right)).mean(1)
        best = int(micro.argmax())
        return {
            "dev/micro_f1": float(micro[best]),
            "dev/macro_f1": float(macro[best]),
            "dev/loss": float(sums[-2] / max(1.0, sums[-1])),
            "dev/error": float(1 - micro[best]),
        }


class TagDev(_Dev):
    """Which tags a head gives the tokens of a sentence: spans count where the tags spell some."""

    def __init__(self, dev: DevRows, task: Labelling) -> None:
        super().__init__(dev)
        self._task = task

    def measure(self, forward: Forward, all_sum: AllSum) -> dict[str, float]:
        """F1 of spans or accuracy of tags, and loss."""
        counts = np.zeros(6)
        for rows, compared in self._dev.batches():
            outputs = forward(rows)
            assert outputs.label_scores is not None, "a classifier gives them"
            for row, samples in enumerate(compared):
                for segment in range(1, len(samples) + 1):
                    here = (rows["segment_ids"][row] == segment) & (rows["loss_mask"][row] > 0)
                    gold = rows["targets"][row][here]
                    counts += self._count(gold, outputs.label_scores[row][here])
            counts[5] += float(outputs.losses.sum())
        hits, ours, theirs, right, total, loss = all_sum(counts)
        figures = {"dev/accuracy": right / max(1.0, total), "dev/loss": loss / max(1.0, total)}
        if self._task.spells_spans:
            figures["dev/f1"] = 2 * hits / max(1.0, ours + theirs)
        best = figures.get("dev/f1", figures["dev/accuracy"])
        return {name: float(value) for name, value in figures.items()} | {"dev/error": 1 - best}

    def _count(self, gold: np.ndarray, scores: np.ndarray) -> np.ndarray:
        predicted = self._task.decode(scores)
        right, total = float((predicted == gold).sum()), float(len(gold))
        if not self._task.spells_spans:
            return np.array([0, 0, 0, right, total, 0])
        theirs, ours = (
            set(find_spans([self._task.labels[number] for number in ids]))
            for ids in (gold, predicted)
        )
        return np.array([len(ours & theirs), len(ours), len(theirs), right, total, 0])


class LossDev(_Dev):
    """How likely the right text is."""

    def measure(self, forward: Forward, all_sum: AllSum) -> dict[str, float]:
        """Loss in nats a token and the perplexity it makes."""
        sums = np.zeros(2)
        for rows, _ in self._dev.batches():
            sums += forward(rows).losses.sum(), rows["loss_mask"].sum()
        total, count = all_sum(sums)
        loss = float(total / max(1.0, count))
        return {"dev/loss": loss, "dev/perplexity": float(np.exp(min(loss, 100.0)))}

    def score(self, figures: dict[str, float]) -> float:
        """The loss."""
        return figures["dev/loss"]


class MixtureDev(LossDev):
    """How likely the right texts of several tasks are, each task counting alike."""

    def __init__(self, dev: DevRows, names: Sequence[str]) -> None:
        super().__init__(dev)
        self._names = names

    def measure(self, forward: Forward, all_sum: AllSum) -> dict[str, float]:
        """Loss in nats a token: the mean over the tasks, and of each."""
        sums = np.zeros((2, len(self._names)))
        for rows, compared in self._dev.batches():
            token_losses, segments = forward(rows).losses, rows["segment_ids"]
            for row, samples in enumerate(compared):
                for segment, one in enumerate(samples, start=1):
                    here = segments[row] == segment
                    sums[0, one.gold] += token_losses[row][here].sum()
                    sums[1, one.gold] += rows["loss_mask"][row][here].sum()
        totals, counts = all_sum(sums.ravel()).reshape(sums.shape)
        losses = {
            f"dev/loss_{name}": float(total / count)
            for name, total, count in zip(self._names, totals, counts, strict=True)
            if count
        }
        return {"dev/loss": float(np.mean(list(losses.values()))), **losses}


def build_dev(
    builder: RowBuilder, num_rows: int, micro_batch_size: int, rank: int = 0, world_size: int = 1
) -> Evaluator:
    """This rank's share of the first `num_rows` dev rows, under what its task is judged by."""
    assert isinstance(builder, SampleRowBuilder), "a task's dataset holds samples"
    documents = range(builder.dataset.num_documents("validation"))
    if not documents:
        raise DataError(f"{builder.dataset.folder}: has no dev examples; give some as task.dev")
    packed = builder.packer(0).pack(documents, builder.lengths.tolist())[:num_rows]
    row_ids = np.full(-(-len(packed) // world_size) * world_size, FILL_ROW_ID)
    row_ids[: len(packed)] = np.arange(len(packed))
    mine = row_ids[rank::world_size]
    rows = builder.build(mine, ((0, packed[row]) for row in mine if row >= 0))
    compared = [
        [builder.compared(piece.document) for piece in packed[row]] if row >= 0 else []
        for row in mine
    ]
    last = packed[-1][-1].document
    # Of an example at the cut some answers may be missing, so it does not count.
    is_cut = last < len(documents) - 1
    num_examples = builder.compared(last).example + (0 if is_cut else 1)
    return _of_task(builder, DevRows(rows, compared, micro_batch_size, num_examples))


def _of_task(builder: SampleRowBuilder, dev: DevRows) -> Evaluator:
    dataset = builder.dataset
    settings = read_task(dataset.manifest["task"], str(dataset.folder))
    binding = Binding(dataset.tokenizer, builder.rows.sequence_length, builder.objective)
    task: Any = build_task(settings, binding)
    if isinstance(task, Labelling):
        return TagDev(dev, task)
    if isinstance(task, Mixture):
        return MixtureDev(dev, list(task.parts))
    if not task.labels:
        return LossDev(dev)
    if task.head.multi_label:
        return LabelSetDev(dev, len(task.labels))
    if task.head.is_classifier:
        return LabelDev(dev, len(task.labels))
    return ChoiceDev(dev, len(task.labels), task.settings.length_penalty)


def _confusion(gold: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
    """Counts [labels, labels]: rows what is right, columns what was said."""
    return np.bincount(gold * count + predicted, minlength=count * count).reshape(count, count)


def _label_figures(table: np.ndarray, loss: float) -> dict[str, float]:
    hits, said, right = np.diag(table), table.sum(0), table.sum(1)
    f1 = 2 * hits / np.maximum(1, said + right)
    accuracy = float(hits.sum() / max(1.0, table.sum()))
    return {
        "dev/accuracy": accuracy,
        "dev/macro_f1": float(f1.mean()),
        "dev/loss": loss,
        "dev/error": 1 - accuracy,
    }
