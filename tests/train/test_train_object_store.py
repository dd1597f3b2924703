"""A run whose checkpoints lie on S3: resumed, fenced, examined and mended as one on a disk."""

import json

import pytest
from storage_server import s3_server
from train_scenarios import KilledError, Runner, make_dataset, make_settings

from glm_dist.config import load_config
from glm_dist.engine import Catalogue
from glm_dist.errors import CheckpointError, ConfigError
from glm_dist.train.doctor import examine, mend
from glm_dist.train.settings import PretrainSettings


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def server():
    with s3_server() as url:
        yield url


@pytest.fixture
def place(server, tmp_path):
    head, _, query = server.partition("?")
    return f"{head}/{tmp_path.name}?{query}"


def settings_at(dataset, place):
    checkpoints = {"every_steps": 4, "folder": place, "asynchronous": False}
    return make_settings(dataset, checkpoints=checkpoints)


def test_a_killed_run_goes_on_from_s3_as_if_nothing_had_been(dataset, place, tmp_path):
    whole = Runner(dataset, make_settings(dataset), tmp_path / "whole")
    whole.run()
    runner = Runner(dataset, settings_at(dataset, place), tmp_path / "run")
    with pytest.raises(KilledError):
        runner.run(break_at=7)
    assert runner.run().kind == "finished"
    assert runner.losses() == whole.losses()
    assert runner.weights_hash() == whole.weights_hash()
    attempts = sorted((tmp_path / "run/attempts").glob("attempt-*.json"))
    resumed = json.loads(attempts[-1].read_text())
    assert resumed["state"]["step"] == 4
    assert resumed["checkpoint"].startswith("s3://checkpoints/")
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_second_run_is_kept_from_the_checkpoints_of_the_first(dataset, place, tmp_path):
    Runner(dataset, settings_at(dataset, place), tmp_path / "run").run()
    with pytest.raises(CheckpointError, match="holds the checkpoints of another run"):
        Runner(dataset, settings_at(dataset, place), tmp_path / "other")


def test_a_run_that_lost_its_place_to_another_commits_nothing_more(dataset, place, tmp_path):
    runner = Runner(dataset, settings_at(dataset, place), tmp_path / "run")
    plain = runner.batches

    def batches(state):
        taken = False
        for rows in plain(state):
            if not taken and Catalogue(place).survey():  # somebody removes the mark and takes it
                store, taken = Catalogue(place).store, True
                (store.folder / "owner.json").unlink()
                store.claim("another")
            yield rows

    runner.batches = batches
    with pytest.raises(CheckpointError, match="another run has taken"):
        runner.run()
    assert [found.folder.name[:19] for found in Catalogue(place).survey()] == [
        "checkpoint-00000004"
    ]


def test_the_place_of_the_checkpoints_cannot_change_within_a_run(dataset, place, tmp_path):
    Runner(dataset, settings_at(dataset, place), tmp_path / "run").run()
    with pytest.raises(CheckpointError, match=r"checkpoints.folder: .*s3://.* None now"):
        Runner(dataset, make_settings(dataset), tmp_path / "run")


def test_a_bucket_that_is_not_there_is_named_before_anything_starts(dataset, server, tmp_path):
    _, _, query = server.partition("?")
    with pytest.raises(CheckpointError, match=r"s3://missing/run.* cannot be written"):
        Runner(dataset, settings_at(dataset, f"s3://missing/run?{query}"), tmp_path / "run")


def test_the_doctor_looks_there_and_marks_what_is_damaged(dataset, place, tmp_path):
    Runner(dataset, settings_at(dataset, place), tmp_path).run()
    newest = Catalogue(place).newest().folder
    assert examine(tmp_path).resume_from == newest.name
    (newest / "rank-00000.safetensors").unlink()
    Catalogue(place).store.write_file(13, "abc", "part", lambda path: path.write_bytes(b"x"))
    findings = examine(tmp_path)
    assert not findings.is_healthy
    assert findings.resume_from.startswith("checkpoint-00000008.")
    done = mend(tmp_path, findings)
    assert len(done) == 2
    after = {found.name: found.state for found in examine(tmp_path).checkpoints}
    assert after[newest.name] == "set aside"
    assert "unfinished" not in after.values()


def test_a_run_folder_on_object_storage_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"checkpoints.folder: s3://bucket/run"):
        load_config(PretrainSettings, overrides=["run_folder=s3://bucket/run"])


def test_checkpoints_may_lie_in_another_folder_of_the_disk(dataset, tmp_path):
    settings = settings_at(dataset, str(tmp_path / "elsewhere"))
    runner = Runner(dataset, settings, tmp_path / "run")
    with pytest.raises(KilledError):
        runner.run(break_at=7)
    assert runner.run().kind == "finished"
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == [
        "checkpoint-00000004",
        "checkpoint-00000008",
        "checkpoint-00000012",
        "owner.json",
    ]
