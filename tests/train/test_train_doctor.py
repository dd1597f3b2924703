"""The doctor tells what is there, and mends only what loses nothing."""

import shutil
import subprocess
import sys

import pytest
from train_scenarios import Runner, make_dataset, make_settings

from glm_dist.errors import CheckpointError
from glm_dist.train.doctor import examine, mend
from glm_dist.train.supervise import Journal, ask_to_stop


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    dataset = make_dataset(tmp_path_factory.mktemp("dataset"))
    settings = make_settings(dataset, checkpoints={"every_steps": 4, "keep_last": 3})
    Runner(dataset, settings, folder).run()
    return folder


@pytest.fixture
def run_folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def states(folder):
    return {found.name: found.state for found in examine(folder).checkpoints}


def test_a_healthy_run_is_said_to_be_so(run_folder):
    findings = examine(run_folder)
    assert findings.is_healthy
    assert [found.state for found in findings.checkpoints] == ["whole"] * 3
    assert findings.resume_from == "checkpoint-00000012"
    assert "next row 96" in findings.checkpoints[-1].detail


def test_damage_is_named_and_set_aside_and_the_rest_tidied(run_folder):
    newest = run_folder / "checkpoint-00000012"
    path = next(newest.glob("rank-*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    (run_folder / "checkpoint-00000013.tmp-abc").mkdir()
    ask_to_stop(run_folder, "user")
    Journal(run_folder).add("failed", number=0, failure="a rank is gone")

    findings = examine(run_folder)
    assert not findings.is_healthy
    assert findings.resume_from == "checkpoint-00000008"
    assert findings.failures == ["a rank is gone"]
    assert states(run_folder)["checkpoint-00000012"] == "damaged"
    assert newest.exists()  # nothing was changed by looking

    done = mend(run_folder, findings)
    assert len(done) == 3
    after = states(run_folder)
    assert after["checkpoint-00000012.damaged-sha256"] == "set aside"
    assert sorted(after.values()) == ["set aside", "whole", "whole"]
    assert examine(run_folder).is_healthy
    assert examine(run_folder).stop_reason is None


def test_the_job_says_it_in_words_and_by_its_exit_code(run_folder):
    def doctor(*arguments):
        command = [sys.executable, "jobs/doctor.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    done = doctor(run_folder)
    assert done.returncode == 0
    assert "resumes      from checkpoint-00000012, the newest whole one" in done.stdout
    next((run_folder / "checkpoint-00000012").glob("rank-*")).unlink()
    done = doctor(run_folder)
    assert done.returncode == 1
    assert "checkpoint-00000012      damaged    missing-file" in done.stdout
    assert doctor(run_folder, "--mend").returncode == 0
    done = doctor(run_folder / "attempts")
    assert done.returncode == 2
    assert "is not the folder of a run" in done.stderr


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        examine(tmp_path)
