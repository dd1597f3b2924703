"""Which folders count as checkpoints, and what happens to those that do not."""

import json

import engine_scenarios as scenarios
import pytest

from glm_dist.engine import Catalogue, checkpoint, load_checkpoint
from glm_dist.engine import catalogue as catalogue_module
from glm_dist.errors import CheckpointError


@pytest.fixture
def engine():
    return scenarios.make_engine("twin")


def save_steps(folder, engine, steps, **options):
    kept = Catalogue(folder, **options)
    for step in steps:
        kept.save(step, engine, {"next_row": step})
    return kept


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def flip_bit(path, position=-9):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def test_a_folder_without_checkpoints_is_a_fresh_start(tmp_path):
    assert Catalogue(tmp_path).newest() is None
    assert Catalogue(tmp_path / "not_there").newest() is None


def test_the_newest_whole_checkpoint_is_found_with_its_state(tmp_path, engine):
    save_steps(tmp_path, engine, [1, 2])
    newest = Catalogue(tmp_path).newest()
    assert (newest.step, newest.state) == (2, {"next_row": 2})
    assert newest.manifest["world_size"] == 1
    assert newest.manifest["files"].keys() == {"rank-00000.safetensors"}


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "manifest.json"])
def test_a_flipped_bit_is_found_named_and_set_aside_and_the_older_one_used(
    tmp_path, engine, file, caplog
):
    save_steps(tmp_path, engine, [1, 2])
    flip_bit(tmp_path / "checkpoint-00000002" / file, position=-40)
    kept = Catalogue(tmp_path)
    assert kept.newest().step == 1
    (damage,) = kept.damaged
    assert damage.folder.is_dir()
    assert damage.folder.name.startswith("checkpoint-00000002.damaged-")
    assert file in damage.reason
    assert "checkpoint-00000002" in caplog.text


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no-manifest"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest"),
        (lambda folder: (folder / "rank-00000.safetensors").unlink(), "missing-file"),
        (lambda folder: (folder / "rank-00000.safetensors").write_bytes(b"1"), "size"),
    ],
)
def test_every_kind_of_damage_has_its_name(tmp_path, engine, harm, reason):
    save_steps(tmp_path, engine, [1, 2])
    harm(tmp_path / "checkpoint-00000002")
    assert Catalogue(tmp_path).newest().step == 1
    assert names(tmp_path) == ["checkpoint-00000001", f"checkpoint-00000002.damaged-{reason}"]


def test_checkpoints_without_a_whole_one_are_no_fresh_start(tmp_path, engine):
    save_steps(tmp_path, engine, [1])
    flip_bit(tmp_path / "checkpoint-00000001" / "rank-00000.safetensors")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"none is whole \(checkpoint-00000001.damaged"):
            Catalogue(tmp_path).newest()


def test_an_unfinished_save_is_ignored_and_later_removed(tmp_path, engine):
    kept = save_steps(tmp_path, engine, [1])
    unfinished = tmp_path / "checkpoint-00000002.tmp-abc"
    unfinished.mkdir()
    (unfinished / "rank-00000.safetensors").write_bytes(b"half")
    assert Catalogue(tmp_path).newest().step == 1
    kept.save(3, engine, {})
    assert names(tmp_path) == ["checkpoint-00000001", "checkpoint-00000003"]


def test_the_last_ones_and_milestones_are_kept(tmp_path, engine):
    save_steps(tmp_path, engine, range(1, 8), keep_last=2, milestone_every_steps=3)
    assert names(tmp_path) == [f"checkpoint-{step:08d}" for step in (3, 5, 6, 7)]


def test_the_best_one_is_kept_and_makes_room_for_a_better_one(tmp_path, engine):
    kept = Catalogue(tmp_path, keep_last=1)
    for step, score in enumerate([5.0, 3.0, None, 4.0, 3.5], start=1):
        kept.save(step, engine, {"score": score})
    assert names(tmp_path) == ["checkpoint-00000002", "checkpoint-00000005"]
    kept.save(6, engine, {"score": 2.0})
    kept.save(7, engine, {"score": 2.5})
    assert names(tmp_path) == ["checkpoint-00000006", "checkpoint-00000007"]


def test_a_leased_one_stays_until_it_is_given_back_or_the_lease_ends(tmp_path, engine):
    kept = save_steps(tmp_path, engine, [1], keep_last=1)
    with Catalogue(tmp_path).lease() as checkpoint:
        for step in (2, 3):
            kept.save(step, engine, {})
        assert checkpoint.folder.is_dir()
        with Catalogue(tmp_path).lease(seconds=-1):
            kept.save(4, engine, {})
        assert names(tmp_path) == ["checkpoint-00000001", "checkpoint-00000004", "leases"]
    kept.save(5, engine, {})
    assert names(tmp_path) == ["checkpoint-00000005", "leases"]


def test_a_damaged_one_does_not_count_as_kept(tmp_path, engine):
    save_steps(tmp_path, engine, [1, 2], keep_last=2)
    flip_bit(tmp_path / "checkpoint-00000002" / "rank-00000.safetensors")
    save_steps(tmp_path, engine, [3], keep_last=2)
    assert names(tmp_path) == [
        "checkpoint-00000001",
        "checkpoint-00000002.damaged-sha256",
        "checkpoint-00000003",
    ]


def test_a_step_saved_again_replaces_the_old_one(tmp_path, engine):
    kept = save_steps(tmp_path, engine, [1])
    kept.save(1, engine, {"next_row": 77})
    assert Catalogue(tmp_path).newest().state == {"next_row": 77}
    assert names(tmp_path) == ["checkpoint-00000001"]


def test_a_failing_disk_leaves_older_checkpoints_and_no_rest(tmp_path, engine, monkeypatch):
    kept = save_steps(tmp_path, engine, [1])

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(catalogue_module, "save_slices", fail)
    with pytest.raises(CheckpointError, match=r"rank 0: OSError: .*No space left"):
        kept.save(2, engine, {})
    assert names(tmp_path) == ["checkpoint-00000001"]


def test_retired_checkpoints_are_off_the_lineage_for_good(tmp_path, engine):
    kept = save_steps(tmp_path, engine, [1, 2, 3], keep_last=5)
    assert kept.retire(1, {"skip": [8, 16]}) == ["checkpoint-00000003", "checkpoint-00000002"]
    assert Catalogue(tmp_path).newest().step == 1
    (record,) = Catalogue(tmp_path).lineage()
    assert (record["event"], record["above_step"], record["skip"]) == ("retire", 1, [8, 16])
    kept.save(2, engine, {"next_row": 20})
    assert Catalogue(tmp_path).newest().state == {"next_row": 20}


def test_a_rewind_cut_off_after_its_record_is_finished_by_the_reader(tmp_path, engine):
    save_steps(tmp_path, engine, [1, 2])
    manifest = json.loads((tmp_path / "checkpoint-00000002" / "manifest.json").read_text())
    record = {"event": "retire", "checkpoints": {"checkpoint-00000002": manifest["attempt"]}}
    (tmp_path / "lineage.jsonl").write_text(json.dumps(record) + '\n{"event": "ret')
    assert Catalogue(tmp_path).newest().step == 1
    assert any(".retired-" in name for name in names(tmp_path))


def test_a_torn_record_does_not_hide_the_next_one(tmp_path, engine):
    kept = save_steps(tmp_path, engine, [1, 2])
    (tmp_path / "lineage.jsonl").write_text('{"event": "ret')
    kept.retire(1)
    assert Catalogue(tmp_path).newest().step == 1


def test_another_models_checkpoint_is_refused_by_name(tmp_path, engine, monkeypatch):
    save_steps(tmp_path, engine, [1])
    monkeypatch.setattr(scenarios, "VOCABULARY", 41)
    other = scenarios.make_engine("twin")
    with pytest.raises(CheckpointError, match=r"embedding.weight is \[37, 24\] and should be \[41"):
        load_checkpoint(other, Catalogue(tmp_path).newest())


def test_a_newer_schema_is_refused_and_left_alone(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(checkpoint, "SCHEMA_VERSION", 2)
    save_steps(tmp_path, engine, [1])
    monkeypatch.setattr(checkpoint, "SCHEMA_VERSION", 1)
    with pytest.raises(CheckpointError, match="schema 2, this release reads 1"):
        Catalogue(tmp_path).newest()
    assert names(tmp_path) == ["checkpoint-00000001"]


def test_a_save_that_fails_on_one_rank_fails_on_all_and_leaves_nothing(life):
    for rank in life.ranks:
        assert "rank 1: OSError: [Errno 28] No space left on device" in rank["failed_save"]
    assert not list((life.folder / "failed").iterdir())
