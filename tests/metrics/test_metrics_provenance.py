"""Every published figure says where it comes from."""

import json
import subprocess
import sys

from glm_dist.metrics.provenance import ROOT, describe, provenance


def test_it_names_command_commit_versions_and_hardware():
    origin = provenance()
    page = describe(origin)
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert head.returncode or head.stdout.startswith(origin["commit"][:12])
    assert f"torch {origin['versions']['torch']}" in page
    assert origin["hardware"]["cores"] >= 1
    assert json.loads(json.dumps(origin)) == origin


def test_the_command_is_one_that_can_be_given_again(tmp_path):
    script = tmp_path / "measure.py"
    script.write_text(
        "from glm_dist.metrics.provenance import provenance as p; print(p()['command'])"
    )
    command = [sys.executable, script, "name=a b"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "python measure.py 'name=a b'"
