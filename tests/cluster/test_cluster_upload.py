"""What `ray job submit --working-dir .` uploads: the code, and none of what lies beside it."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[2]
MAX_BYTES = 5_000_000
BESIDE = [
    ".venv/lib/torch.so",
    "venv/lib/torch.so",
    "runs/demo/checkpoint-00000001/rank-0.safetensors",
    "data/demo/train-00000.arrow",
    "wandb/run-1/run.wandb",
    "build/lib/big.bin",
    ".mypy_cache/big.json",
    "glm_dist/__pycache__/config.cpython-311.pyc",
]


def project_files():
    """Files that belong to the project, committed or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The upload of a copy of the project, with everything beside it that a user would have."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in project_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    for name in [*BESIDE, ".git/objects/pack/big.pack"]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(os.urandom(1_000_000))
    target = tmp_path_factory.mktemp("package") / "package.zip"
    create_package(str(copy), target, include_gitignore=True)
    return target


def test_the_package_is_small(package):
    assert package.stat().st_size < MAX_BYTES


def test_environment_runs_and_data_stay_and_all_code_goes(package):
    names = set(zipfile.ZipFile(package).namelist())
    assert not [name for name in BESIDE if name in names]
    assert not [name for name in names if name.startswith(".git/")]
    code = {name for name in project_files() if PurePosixPath(name).suffix == ".py"}
    assert len(code) > 50
    assert code <= names


def test_jobs_are_still_executable_after_the_upload(package):
    for name in ("jobs/pretrain.py", "jobs/prepare_data.py", "jobs/generate.py"):
        assert zipfile.ZipFile(package).getinfo(name).external_attr >> 16 & 0o111
