"""Checkpoints on object storage: as a catalogue on a disk, where nothing can be renamed.

On pyarrow's in-memory file system, on a folder through pyarrow, and on a real S3 server.
"""

import multiprocessing
import random
import signal

import engine_scenarios as scenarios
import pytest
from pyarrow import fs
from storage_server import BUCKET, s3_server

from glm_dist.engine import Catalogue, load_checkpoint
from glm_dist.engine.remote import RemotePath, open_location
from glm_dist.errors import CheckpointError

KINDS = ["memory", "folder", "subtree", "s3"]


@pytest.fixture(scope="module")
def server():
    with s3_server() as url:
        yield url


@pytest.fixture(params=KINDS)
def place(request, tmp_path):
    """An empty folder on one of the file systems."""
    if request.param == "s3":
        head, _, query = request.getfixturevalue("server").partition("?")
        return open_location(f"{head}/{tmp_path.name}?{query}")
    if request.param == "memory":
        return RemotePath(fs._MockFileSystem(), "bucket/run")
    if request.param == "folder":
        return RemotePath(fs.LocalFileSystem(), str(tmp_path / "run"))
    return RemotePath(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "run")


@pytest.fixture
def engine():
    return scenarios.make_engine("twin")


def save_steps(place, engine, steps, **options):
    catalogue = Catalogue(place, **options)
    for step in steps:
        catalogue.save(step, engine, {"next_row": step})
    return catalogue


def states(place):
    return [(found.folder.name[:19], found.state) for found in Catalogue(place).survey()]


def names(*steps):
    return [(f"checkpoint-{step:08d}", "committed") for step in sorted(steps, reverse=True)]


def rewrite(path, content):
    with path.filesystem.open_output_stream(path.path) as stream:
        stream.write(content)


def content_of(path):
    with path.open("rb") as file:
        return bytearray(file.read())


def test_what_is_saved_is_found_and_goes_on_to_the_bit(place, engine):
    assert Catalogue(place).newest() is None
    scenarios.run_steps(engine, 0, 3)
    save_steps(place, engine, [1, 3])
    expected = scenarios.run_steps(engine, 3, 6)
    newest = Catalogue(place).newest()
    assert (newest.step, newest.state) == (3, {"next_row": 3})
    resumed = scenarios.make_engine("twin")
    load_checkpoint(resumed, newest)
    assert scenarios.run_steps(resumed, 3, 6) == expected


def test_the_last_ones_milestones_and_the_best_are_kept(place, engine):
    catalogue = Catalogue(place, keep_last=2, milestone_every_steps=3)
    for step, score in enumerate([5.0, 3.0, None, 4.0, 3.5, None, 6.0], start=1):
        catalogue.save(step, engine, {"score": score})
    assert states(place) == names(2, 3, 5, 6, 7)


def test_a_step_saved_again_replaces_the_old_one(place, engine):
    catalogue = save_steps(place, engine, [1, 2])
    catalogue.save(2, engine, {"next_row": 77})
    assert states(place) == names(1, 2)
    assert Catalogue(place).newest().state == {"next_row": 77}


HARMS = {
    "sha256": lambda folder: rewrite(folder / "rank-00000.safetensors", flipped(folder)),
    "size": lambda folder: rewrite(folder / "rank-00000.safetensors", b"1"),
    "missing-file": lambda folder: (folder / "rank-00000.safetensors").unlink(),
    "extra-file": lambda folder: rewrite(folder / "rank-00001.safetensors", b"more"),
    "manifest": lambda folder: rewrite(folder / "manifest.json", b"{"),
}


def flipped(folder):
    content = content_of(folder / "rank-00000.safetensors")
    content[-9] ^= 0x10
    return bytes(content)


@pytest.mark.parametrize("reason", HARMS)
def test_a_damaged_one_is_marked_and_kept_and_the_older_one_used(place, engine, reason):
    save_steps(place, engine, [1, 2])
    newest = Catalogue(place).newest().folder
    HARMS[reason](newest)
    catalogue = Catalogue(place)
    assert catalogue.newest().step == 1
    (damage,) = catalogue.damaged
    assert damage.reason.startswith(reason)
    assert (newest / "manifest.json").exists()  # nothing of it is gone
    assert states(place) == [("checkpoint-00000002", "damaged"), *names(1)]
    assert Catalogue(place).newest() is not None
    rewrite(Catalogue(place).newest().folder / "manifest.json", b"")
    with pytest.raises(CheckpointError, match="none is whole"):
        Catalogue(place).newest()


def test_retired_ones_are_off_the_lineage_for_good(place, engine):
    catalogue = save_steps(place, engine, [1, 2, 3], keep_last=5)
    assert len(catalogue.retire(1, {"skip": [8, 16]})) == 2
    assert Catalogue(place).newest().step == 1
    assert Catalogue(place).lineage()[0]["skip"] == [8, 16]
    catalogue.save(2, engine, {"next_row": 20})
    assert Catalogue(place).newest().state == {"next_row": 20}
    assert [state for _, state in states(place)].count("retired") == 2


def test_a_leased_one_stays_until_it_is_given_back(place, engine):
    catalogue = save_steps(place, engine, [1], keep_last=1)
    with Catalogue(place).lease() as checkpoint:
        save_steps(place, engine, [2, 3], keep_last=1)
        assert checkpoint.step == 1
        assert states(place) == names(1, 3)
    catalogue.save(4, engine, {})
    assert states(place) == names(4)


def test_an_unfinished_save_is_ignored_and_later_removed(place, engine):
    catalogue = save_steps(place, engine, [1])
    catalogue.store.write_file(2, "abc123", "rank-00000.safetensors", lambda p: p.write_bytes(b"x"))
    assert states(place) == [("checkpoint-00000002", "unfinished"), *names(1)]
    assert Catalogue(place).newest().step == 1
    catalogue.save(3, engine, {})
    assert states(place) == names(1, 3)


def test_an_attempt_that_may_not_commit_leaves_nothing(place, engine):
    def refuse():
        raise CheckpointError("a later attempt has taken this run over")

    with pytest.raises(CheckpointError, match="taken this run over"):
        Catalogue(place, permit=refuse).save(1, engine, {})
    assert states(place) == []


KILLS = 25


@pytest.mark.slow
def test_a_save_killed_anywhere_leaves_its_checkpoint_or_the_one_before(server, faults):
    """Each in a process of its own, for S3 clients do not survive a fork."""
    head, _, query = server.partition("?")
    url = f"{head}/killed?{query}"
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["engine_scenarios"])
    rng, step, killed, lost = random.Random(0), 0, 0, 0
    while killed < KILLS:
        step += 1
        is_ready = processes.Event()
        save = processes.Process(target=scenarios.save_at, args=(url, step, is_ready))
        save.start()
        is_ready.wait()
        save.join(rng.uniform(0, 0.6))
        save.kill()
        save.join()
        killed += save.exitcode == -signal.SIGKILL
        receiver, sender = processes.Pipe(duplex=False)
        look = processes.Process(target=scenarios.look_at, args=(url, sender))
        look.start()
        newest, num_damaged = receiver.recv()
        look.join()
        assert not num_damaged
        assert newest in (step - 1, step)
        lost += newest < step
        step = newest
    assert step > 0
    faults.add("C1-s3", killed, killed, before_the_commit=lost)


def test_a_url_without_a_file_system_and_one_with_a_secret_are_refused():
    with pytest.raises(CheckpointError, match=r"no file system opens it"):
        open_location("nothing://bucket/run")
    with pytest.raises(CheckpointError, match="holds a secret") as refused:
        open_location("s3://key:sesame@bucket/run")
    assert "sesame" not in str(refused.value)


def test_storage_that_does_not_answer_damages_no_checkpoint(server, engine, monkeypatch):
    head, _, query = server.partition("?")
    place = open_location(f"{head}/silent?{query}")
    save_steps(place, engine, [1])

    def fail(self, mode):
        raise OSError("timeout")

    monkeypatch.setattr(RemotePath, "open", fail)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        Catalogue(place).newest()
    monkeypatch.undo()
    assert Catalogue(place).newest().step == 1
    assert BUCKET in str(Catalogue(place).newest().folder)
