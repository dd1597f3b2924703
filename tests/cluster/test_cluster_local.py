"""A local cluster: several nodes, closed to whoever has no token, and gone without a trace."""

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "cluster"))

import local  # noqa: E402

WHERE = """
import os, ray
ray.init(log_to_driver=False)
assert os.path.exists("where.py"), "a node's files were unpacked over another's"
probe = ray.remote(lambda: (ray.get_runtime_context().get_node_id(), os.path.exists("where.py")))
on = [ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
      for node in ray.nodes()]
seen = ray.get([probe.options(scheduling_strategy=one).remote() for one in on])
print("SEEN", len({node for node, _ in seen}), all(has for _, has in seen))
"""


@pytest.mark.ray
def test_a_job_runs_on_all_nodes_and_nothing_is_left_at_the_end(tmp_path):
    (tmp_path / "where.py").write_text(WHERE)
    with local.LocalCluster(num_workers=1, cpus_per_node=1) as cluster:
        assert cluster.num_nodes() == 2
        token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"])
        assert token.stat().st_mode & 0o777 == 0o600
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(cluster.environment["RAY_ADDRESS"] + "/api/jobs/", timeout=10)
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
        done = subprocess.run(
            [*submit, "--working-dir", str(tmp_path), "--", "python", "where.py"],
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "SEEN 2 True" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
        started = cluster.started()
        assert len(started) > 6
    assert [one for one in started if local.is_alive(one)] == []
    assert not cluster.folder.exists()


def test_descendants_end_with_their_node_and_others_are_left_alone(monkeypatch):
    monkeypatch.setattr(local, "STOP_SECONDS", 0.5)  # the orphan ends by SIGKILL alone
    sleeper = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    ours, other = (
        subprocess.Popen([sys.executable, "-c", sleeper], stdin=subprocess.PIPE) for _ in range(2)
    )
    try:
        while len(local.trees([ours])) < 2:
            assert ours.poll() is None
        started = local.trees([ours])
        local.end([ours])
        assert [one for one in started if local.is_alive(one)] == []
        assert local.is_alive(psutil.Process(other.pid))
    finally:
        local.end([ours, other])


def test_ports_are_free_and_all_different():
    ports = local.free_ports(5)
    assert len(set(ports)) == 5


def test_a_node_that_ends_at_once_is_reported_with_its_log(monkeypatch):
    cluster = local.LocalCluster()
    monkeypatch.setattr(cluster, "_ray", "/bin/echo")
    with pytest.raises(SystemExit, match="(?s)did not start.*--head"):
        cluster.__enter__()
    assert not cluster.folder.exists()


def test_no_token_of_the_caller_wins_over_the_cluster_s_own(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    cluster = local.LocalCluster()
    cluster.__exit__()
    assert "RAY_AUTH_TOKEN" not in cluster.environment
