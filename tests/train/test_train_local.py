"""The loop without ray: one process, an engine of plain torch, rows straight from a builder."""

import json
import shutil

import numpy as np
import pytest

from glm_dist.data.order import RowOrder, RowSchedule
from glm_dist.data.row_table import finish_table, write_part
from glm_dist.data.rows import RowBuilder, RowSettings
from glm_dist.data.shards import SCHEMA_VERSION, Document, TokenDataset, write_manifest, write_shard
from glm_dist.engine import EngineSettings
from glm_dist.errors import CheckpointError, DataError
from glm_dist.metrics.sinks import SinkSettings, read_metrics
from glm_dist.model import ModelSettings
from glm_dist.objective import ObjectiveSettings
from glm_dist.tokenizer import TokenizerSettings, train_tokenizer
from glm_dist.train.attempt import claim_run_folder, decide_attempt
from glm_dist.train.boundary import LocalBoundary
from glm_dist.train.report import write_report
from glm_dist.train.schedule import learning_rate
from glm_dist.train.settings import PretrainSettings, ScheduleSettings
from glm_dist.train.worker import Job, run_rank

WORDS = "the list returns a number of items when the given value is not in a range".split()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=60)) + "." for _ in range(300)]
    tokenizer = train_tokenizer(texts, TokenizerSettings(vocab_size=320))
    tokenizer.save(folder)
    documents = [
        Document(tokenizer.encode(text), "words", "en", str(i)) for i, text in enumerate(texts)
    ]
    splits = {
        name: [write_shard(folder / f"{name}-00000.arrow", part, tokenizer.vocab_size)]
        for name, part in (("train", documents[:250]), ("validation", documents[250:]))
    }
    manifest = {"schema_version": SCHEMA_VERSION, "splits": splits, "languages": {"en": 1}}
    write_manifest(folder, {**manifest, "tokenizer": {"sha256": tokenizer.sha256}})
    return TokenDataset.open(folder)


def make_settings(dataset, **changes):
    vocab_size = dataset.tokenizer.vocab_size
    model = ModelSettings(
        preset=None, num_layers=1, hidden_size=32, num_heads=2, vocab_size=vocab_size
    )
    values = {
        "duration": {"num_steps": 12},
        "batch": {"global_batch_size": 8, "micro_batch_size": 4},
        "workers": {"num_workers": 1},
        "rows": RowSettings(sequence_length=64),
        "model": model,
        "engine": EngineSettings(backend="torch", dtype="float32"),
        "evaluation": {"every_steps": 6, "num_rows": 8},
        "checkpoints": {"every_steps": 4},
        "sinks": SinkSettings(tensorboard=False, wandb="off"),
        "log_every_steps": 1,
        **changes,
    }
    return PretrainSettings(**values)


class Runner:
    """Runs attempts of one run folder in this process."""

    def __init__(self, dataset, settings, folder):
        self.dataset, self.settings, self.folder = dataset, settings, folder
        self.builder = RowBuilder(
            dataset, "train", settings.rows, ObjectiveSettings(), settings.seed
        )
        rows = self.builder.packer(0).pack(range(250), self.builder.lengths.tolist())
        table = finish_table(folder / "table", {}, [write_part(folder / "table", 0, rows)])
        self.order = RowOrder([table], settings.seed)
        self.prints = {"dataset": dataset.fingerprint, "row order": self.order.sha256}
        claim_run_folder(folder, settings)

    def batches(self, state):
        schedule = RowSchedule(state.next_row, tuple(state.skipped), 8, 1)
        for step in range(self.settings.num_steps - state.step):
            for ids in np.split(schedule.step_rows(step), 2):
                yield self.builder.build(ids, self.order.pieces(ids))

    def run(self, break_at=None, stop_at=None):
        attempt = decide_attempt(self.folder, self.settings, self.prints, 1)
        job = Job(self.settings, str(self.folder), str(self.dataset.folder), self.prints)
        boundary = LocalBoundary(iter(()))

        def watched():
            for number, rows in enumerate(self.batches(attempt.train_state)):
                if break_at is not None and number == 2 * break_at:
                    raise RuntimeError("killed")
                boundary.stop = stop_at is not None and number >= 2 * stop_at
                yield rows

        boundary._batches = watched()
        return run_rank(job, boundary, attempt)

    def losses(self):
        return {
            line["step"]: line["loss"]
            for line in read_metrics(self.folder / "metrics.jsonl")
            if "loss" in line
        }


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    runner = Runner(dataset, make_settings(dataset), tmp_path_factory.mktemp("run"))
    runner.run()
    return runner


def test_training_lowers_the_loss_and_leaves_a_model_and_a_report(undisturbed, dataset):
    losses = undisturbed.losses()
    assert list(losses) == list(range(1, 13))
    assert losses[12] < losses[1]
    assert (undisturbed.folder / "model" / "model.safetensors").exists()
    summary = write_report(undisturbed.folder, undisturbed.settings, dataset)
    assert summary["steps"] == 12
    assert 0 < summary["heldout/unigram_entropy"] < 6
    assert summary["heldout/loss_shuffled_context"] > 0
    assert (undisturbed.folder / "loss.png").stat().st_size > 5000
    assert json.loads((undisturbed.folder / "summary.json").read_text()) == summary


@pytest.mark.parametrize("break_at", [1, 5, 11])
def test_a_killed_run_resumes_to_the_losses_it_would_have_had(
    undisturbed, dataset, tmp_path, break_at
):
    runner = Runner(dataset, make_settings(dataset), tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        runner.run(break_at=break_at)
    state = runner.run()
    assert state.step == 12
    assert runner.losses() == undisturbed.losses()


def test_a_stop_saves_at_once_and_the_next_launch_goes_on(undisturbed, dataset, tmp_path):
    runner = Runner(dataset, make_settings(dataset), tmp_path)
    stopped = runner.run(stop_at=5)
    assert stopped.step < 12
    assert stopped.step % 4
    runner.run()
    assert runner.losses() == undisturbed.losses()


def test_wrong_rows_stop_the_run_before_they_are_trained_on(dataset, tmp_path):
    runner = Runner(dataset, make_settings(dataset), tmp_path)
    right = runner.batches
    runner.batches = lambda state: (
        {**rows, "row_ids": rows["row_ids"] + 1} for rows in right(state)
    )
    with pytest.raises(DataError, match="the order says"):
        runner.run()
    assert not runner.folder.joinpath("metrics.jsonl").exists() or not runner.losses()


def test_a_run_folder_of_another_config_is_refused_by_the_settings_that_differ(
    undisturbed, dataset
):
    other = make_settings(dataset, seed=5, schedule={"peak_learning_rate": 1e-5})
    with pytest.raises(CheckpointError) as caught:
        claim_run_folder(undisturbed.folder, other)
    assert "seed: 1234 there, 5 now" in str(caught.value)
    assert "schedule.peak_learning_rate" in str(caught.value)
    claim_run_folder(undisturbed.folder, make_settings(dataset, workers={"num_workers": 2}))


def test_checkpoints_of_other_data_are_refused(undisturbed, dataset, tmp_path):
    shutil.copytree(undisturbed.folder, tmp_path / "copy")
    prints = {**undisturbed.prints, "dataset": "another"}
    with pytest.raises(CheckpointError, match="another dataset"):
        decide_attempt(tmp_path / "copy", undisturbed.settings, prints, 1)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_the_learning_rate_rises_stays_positive_and_ends_where_it_should(kind):
    settings = ScheduleSettings(kind=kind, peak_learning_rate=1.0, warmup_share=0.1)
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[:10] == sorted(rates[:10])
    assert min(rates) > 0
    assert rates[-1] == pytest.approx(1.0 if kind == "constant" else 0.1, abs=0.05)


def test_all_problems_of_a_run_are_named_at_once():
    with pytest.raises(
        ValueError, match=r"exactly one.*global_batch_size.*multiple of log"
    ) as caught:
        PretrainSettings(
            duration={"num_steps": 1, "num_tokens": 1},
            batch={"global_batch_size": 10, "micro_batch_size": 4},
            checkpoints={"every_steps": 7},
        )
    assert "use a multiple of 8, e.g. 16" in str(caught.value)
