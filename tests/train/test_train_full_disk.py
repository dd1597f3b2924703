"""A disk that fills up at each tenth of a save: the run goes on, and says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from train_scenarios import make_dataset

ROOT = Path(__file__).parents[2]
CAN_MOUNT = (
    subprocess.run(
        ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"], capture_output=True
    ).returncode
    == 0
)


@pytest.mark.skipif(not CAN_MOUNT, reason="mounting file systems is not permitted here")
def test_a_full_disk_costs_the_checkpoint_and_nothing_else(tmp_path, faults):
    dataset = make_dataset(tmp_path / "dataset")
    (tmp_path / "run").mkdir()
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "train")])
    script = [sys.executable, str(ROOT / "tests" / "train" / "full_disk.py")]
    done = subprocess.run(
        ["unshare", "-m", *script, str(dataset.folder), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    undisturbed, *runs = json.loads(done.stdout.splitlines()[-1])
    assert undisturbed["warned"] == []
    assert len(runs) == 10
    for run in runs:
        assert run["losses"] == undisturbed["losses"]
        assert (run["step"], run["resumes"]) == (16, 16)
        assert "No space left on device" in run["warned"][0]
        assert "training goes on without it" in run["warned"][0]
        assert run["whole"] == [f"checkpoint-{step:08d}" for step in (4, 12, 16)]
    faults.add("C2", len(runs), len(runs))
    print(f"{len(runs)} of 10 full disks outlived, each at the cost of one checkpoint")
