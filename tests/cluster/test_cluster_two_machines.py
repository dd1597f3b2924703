"""two_machines.sh: what it tells Ray on each machine, and what it refuses."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOW = '#!/bin/sh\nprintf "%s\\n" "$@"\nenv | grep -E "^(RAY|GLM)_" | sort\n'


@pytest.fixture
def run(tmp_path):
    """Runs the script with a `ray` that shows its arguments and environment."""
    script = tmp_path / "checkout/cluster/two_machines.sh"  # a checkout without a .venv
    script.parent.mkdir(parents=True)
    script.write_bytes((ROOT / "cluster/two_machines.sh").read_bytes())
    fake = tmp_path / "bin/ray"
    fake.parent.mkdir()
    fake.write_text(SHOW)
    fake.chmod(0o755)
    environment = {
        "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_TOKEN": "of another cluster",
        "RAY_ADDRESS": "another:6379",
    }

    def run(*arguments):
        return subprocess.run(
            ["bash", str(script), *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def test_the_head_makes_a_token_that_only_its_owner_reads_and_keeps_the_dashboard_to_itself(
    run, home
):
    lines = run("head", home, "10.0.0.1", "--num-cpus=4").stdout.splitlines()
    assert {"--head", "--block", "--node-ip-address=10.0.0.1", "--num-cpus=4"} <= set(lines)
    assert "--dashboard-host=127.0.0.1" in lines
    assert {"RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN_PATH={home}/ray_token"} <= set(lines)
    assert f"GLM_DIST_HOME={home}" in lines
    assert not [line for line in lines if line.startswith(("RAY_AUTH_TOKEN=", "RAY_ADDRESS="))]
    token = home / "ray_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) == 64


def test_a_head_that_starts_again_keeps_its_token(run, home):
    run("head", home, "10.0.0.1")
    token = (home / "ray_token").read_text()
    run("head", home, "10.0.0.1")
    assert (home / "ray_token").read_text() == token
    assert [path.name for path in home.iterdir()] == ["ray_token"]


def test_a_worker_joins_the_head_with_the_shared_token(run, home):
    run("head", home, "10.0.0.1")
    lines = run("worker", home, "10.0.0.1", "--num-gpus=1").stdout.splitlines()
    assert {"--block", "--address=10.0.0.1:6379", "--num-gpus=1"} <= set(lines)
    assert f"RAY_AUTH_TOKEN_PATH={home}/ray_token" in lines


def test_a_job_is_submitted_through_the_loopback_dashboard(run, home):
    run("head", home, "10.0.0.1")
    lines = run("submit", home, "python", "jobs/pretrain.py", "name=a b").stdout.splitlines()
    assert lines[:7] == [
        *("job", "submit", "--address=http://127.0.0.1:8265", "--working-dir", ".", "--"),
        "python",
    ]
    assert lines[7:9] == ["jobs/pretrain.py", "name=a b"]


@pytest.mark.parametrize("role", ["worker", "submit"])
def test_a_machine_that_does_not_see_the_shared_folder_of_the_head_is_told_so(run, home, role):
    done = run(role, home, "10.0.0.1")
    assert done.returncode == 2
    assert "ray_token" in done.stderr
    assert "head" in done.stderr


def test_a_folder_that_is_not_there_is_refused_by_name(run, tmp_path):
    done = run("head", tmp_path / "nowhere", "10.0.0.1")
    assert done.returncode == 2
    assert "nowhere" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("head",), ("heads", "{home}"), ("head", "{home}")])
def test_a_wrong_call_shows_the_right_ones(run, home, arguments):
    done = run(*[argument.format(home=home) for argument in arguments])
    assert done.returncode == 2
    assert "two_machines.sh submit HOME COMMAND" in done.stderr
