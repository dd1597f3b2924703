"""The head of a cluster is lost, and nobody who asks a worker notices: row S7, with Redis."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from serving import TITLES, Deployed, Load, Oracle, write_model
from victims import title

from glm_dist.serve.limits import RequestLimits
from glm_dist.serve.proxy import environment

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "cluster"))

from local import LOOPBACK, LocalCluster, free_ports, trees  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PROMPT = "The list returns"
OUTAGE_SECONDS = 60
PER_SECOND = 10


class WithMemory(LocalCluster):
    """A head that runs nothing and keeps what it knows in Redis, and a worker."""

    def __init__(self, folder):
        super().__init__(num_workers=1, cpus_per_node=3, head_cpus=0)
        redis, self.port = free_ports(2)
        command = ["redis-server", "--port", str(redis), "--bind", LOOPBACK, "--save", ""]
        self._redis = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        self.environment |= {
            **environment(RequestLimits()),
            "GLM_DIST_HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "RAY_REDIS_ADDRESS": f"{LOOPBACK}:{redis}",
            "RAY_external_storage_namespace": "glm",
            # Workers wait for a head longer than it is away.
            "RAY_gcs_rpc_server_reconnect_timeout_s": str(5 * OUTAGE_SECONDS),
            "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(self.port),
        }

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self._redis.terminate()
        self._redis.wait()

    def lose_head(self):
        """All its processes at once."""
        for process in trees([self._processes[0]]):
            process.kill()
        self._processes[0].wait()

    def replace_head(self):
        """Another one at the same address."""
        self._start_head()

    def of(self, kind):
        """The worker's processes of a kind."""
        return [one for one in trees([self._processes[1]]) if TITLES[kind] in title(one)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_model(home / "models" / "tiny")
    return home


def test_a_head_with_redis_is_lost_for_a_minute(home, faults):
    oracle = Oracle(home / "models" / "tiny", PROMPT, max_tokens=20)
    os.environ["PYTHONPATH"] = str(ROOT)
    with WithMemory(home) as cluster:
        deployed = Deployed(home, cluster)
        deployed.deploy("model=models/tiny", "name=tiny", "front_cpus=0.1")
        deployed.url = f"http://{LOOPBACK}:{cluster.port}"
        deployed.wait_for(deployed.answers)
        load, until = Load(deployed.url, oracle.body), threading.Event()
        back = []

        def disturb():
            try:
                time.sleep(2)
                cluster.lose_head()
                assert not is_running(deployed)
                time.sleep(OUTAGE_SECONDS)
                start = time.monotonic()
                cluster.replace_head()
                deployed.wait_for(lambda: is_running(deployed))
                back.append(time.monotonic() - start)
                time.sleep(2)
            finally:
                until.set()

        thread = threading.Thread(target=disturb)
        thread.start()
        outcomes = asyncio.run(load.run(PER_SECOND, until=until))
        thread.join()
        assert back, "the head did not come back"
        failed = [one for one in outcomes if not one.is_whole or one.text != oracle(one.seed)]
        assert failed == []
        # The new head can do what the old one could.
        [engine] = cluster.of("engine")
        engine.kill()
        psutil.wait_procs([engine], timeout=30)
        deployed.wait_for(lambda: not deployed.answers())
        replaced = deployed.wait_for(deployed.answers)
        assert deployed.text(oracle, 3) == oracle(3)
    assert len(outcomes) > OUTAGE_SECONDS * PER_SECOND * 0.9
    faults.add(
        "S7-redis",
        1,
        1,
        requests=len(outcomes),
        failed=len(failed),
        head_back=f"{back[0]:.0f} s",
        engine_replaced=f"{replaced:.0f} s",
    )


def is_running(deployed):
    """Whether the head knows the application, and finds it well."""
    try:
        return "status: RUNNING" in deployed.status()
    except AssertionError:
        return False
