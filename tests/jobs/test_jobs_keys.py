"""Keys on the command line."""

import subprocess
import sys
from pathlib import Path

from glm_dist.serve.keys import ApiKeys

JOB = Path(__file__).parents[2] / "jobs" / "keys.py"


def keys(*arguments):
    return subprocess.run(
        [sys.executable, str(JOB), *map(str, arguments)], capture_output=True, text=True
    )


def test_keys_are_made_listed_and_revoked(tmp_path):
    path = tmp_path / "keys.txt"
    made = keys(path, "--add", "id=team-a", "scopes=generate,classify", "requests_per_minute=60")
    assert made.returncode == 0, made.stderr
    key = made.stdout.split()[1]
    assert f"python jobs/serve.py model=runs/my_run api_keys={path}" in made.stdout
    assert key not in path.read_text()
    caller = ApiKeys.load(str(path)).check(f"Bearer {key}")
    assert (caller.id, caller.scopes) == ("team-a", ("generate", "classify"))
    path.write_text(f"# ours\n{path.read_text()}")
    assert keys(path, "--add").returncode == 0
    listed = keys(path).stdout
    assert "team-a" in listed
    assert "scopes=generate,classify requests_per_minute=60" in listed
    assert key not in listed
    assert "team-a" in keys(path, "--revoke", "team-a").stdout
    assert "team-a" not in path.read_text()
    assert path.read_text().startswith("# ours\n")
    assert keys(path).stdout.count("everything") == 1


def test_mistakes_are_said_without_a_stack_trace(tmp_path):
    path = tmp_path / "keys.txt"
    for arguments, says in (
        ([path], "cannot be read"),
        ([path, "--add", "scopes=fly"], "scopes"),
        ([path, "--add", "colour=red"], "no such rule"),
        ([path, "--add", "id=a", "id=b"], "twice"),
        ([path, "--revoke", "x"], "cannot be read"),
        ([tmp_path / "none" / "keys.txt", "--add"], "cannot be written"),
    ):
        done = keys(*arguments)
        assert done.returncode == 2, arguments
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    assert not path.exists()
