"""A node that does not see the data: in a mount namespace of its own, as on another machine."""

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "cluster"))

from local import LocalCluster  # noqa: E402

CAN_HIDE = subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not CAN_HIDE, reason="mount namespaces are not permitted here"),
]


@pytest.fixture
def home(tmp_path):
    """A home with a dataset, which the worker node will not see."""
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    texts = [f"the list number {number} returns its items in order." for number in range(200)]
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    (home / "data" / "words.jsonl").write_text(lines)
    command = [
        sys.executable,
        "jobs/prepare_data.py",
        "output=data/words",
        "tokenizer.vocab_size=300",
    ]
    source = f"sources=[{{name: words, path: {home / 'data/words.jsonl'}}}]"
    environment = {**os.environ, "GLM_DIST_HOME": str(home)}
    subprocess.run([*command, source], cwd=ROOT, env=environment, check=True, capture_output=True)
    return home


@pytest.fixture
def cluster(home, tmp_path):
    """A head that sees the home, and a worker under whose root an empty folder lies there."""
    cluster = LocalCluster(num_workers=1, cpus_per_node=2)
    wrapper = tmp_path / "ray"
    ray = cluster._ray
    hide = f"mount -t tmpfs tmpfs {home} && exec {ray}"
    wrapper.write_text(
        f"#!/bin/sh\n"
        f'case "$*" in *--head*) exec {ray} "$@" ;; esac\n'
        f'exec unshare -m sh -c \'{hide} "$@"\' sh "$@"\n'
    )
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IEXEC)
    cluster._ray = str(wrapper)
    with cluster:
        yield cluster


def test_a_folder_that_a_node_does_not_see_is_refused_with_host_and_remedy(cluster, home):
    submit = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "job",
        "submit",
        "--working-dir",
        str(ROOT),
    ]
    forwarded = json.dumps({"env_vars": {"GLM_DIST_HOME": str(home)}})
    command = ["python", "jobs/pretrain.py", "dataset=data/words", "workers.num_workers=2"]
    done = subprocess.run(
        [*submit, "--runtime-env-json", forwarded, "--", *command],
        env=cluster.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert f"host {socket.gethostname()} does not see {home}/runs/sample" in done.stdout
    assert f"does not see {home}/data/words" in done.stdout
    assert "put GLM_DIST_HOME on storage that every node mounts" in done.stdout
    assert "Traceback" not in done.stdout
    assert not list((home / "runs/sample").glob("checkpoint-*"))
