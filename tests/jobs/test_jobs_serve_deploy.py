"""`serve deploy` on a cluster of two nodes: new weights, and damaged ones."""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from serving import Load, Oracle, free_port, write_model

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "cluster"))

import local  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PROMPT = "The list returns"
SERVE_SECONDS = 240


class Deployed:
    """A cluster of this machine, and what is deployed on it."""

    def __init__(self, home, cluster):
        self.home, self.cluster, self.port = home, cluster, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = home / "serve.yaml"

    def deploy(self, *arguments):
        """Write the config by the job, and deploy it as a user would."""
        command = ["jobs/serve.py", *arguments, f"port={self.port}"]
        self._run([sys.executable, *command, "--write-config", str(self.config)])
        self._run([*self._serve, "deploy", str(self.config), "--address", self._address])

    def status(self):
        """Of the application, and what is said of it."""
        return self._run([*self._serve, "status", "--address", self._address])

    def answers(self):
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def text(self, oracle, seed):
        body = {**oracle.body, "seed": seed}
        reply = httpx.post(f"{self.url}/v1/completions", json=body, timeout=60)
        return reply.json()["choices"][0]["text"]

    def wait_for(self, condition):
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < SERVE_SECONDS, self.status()
            time.sleep(0.2)
        return time.monotonic() - start

    _serve = (sys.executable, "-m", "ray.serve.scripts")

    @property
    def _address(self):
        return self.cluster.environment["RAY_ADDRESS"]

    def _run(self, command):
        environment = {
            **self.cluster.environment,
            "GLM_DIST_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    for seed, name in enumerate(("old", "new")):
        write_model(home / "models" / name, seed=seed)
    shutil.copytree(home / "models" / "new", home / "models" / "damaged")
    weights = home / "models" / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return home


@pytest.fixture(scope="module")
def oracles(home):
    return {name: Oracle(home / "models" / name, PROMPT, 150) for name in ("old", "new")}


@pytest.fixture(scope="module")
def deployed(home):
    # What the nodes' processes import, and where they look for models.
    os.environ["PYTHONPATH"] = str(ROOT)
    with local.LocalCluster(num_workers=1, cpus_per_node=4) as cluster:
        yield Deployed(home, cluster)


def under_load(deployed, oracles, act, per_second=3):
    """What becomes of streams while something is done: by the weights that answered."""
    done, trouble = threading.Event(), []

    def work():
        try:
            act()
        except BaseException as error:
            trouble.append(error)
        finally:
            done.set()

    worker = threading.Thread(target=work)
    worker.start()
    load = Load(deployed.url, oracles["old"].body, stream=True)
    outcomes = asyncio.run(load.run(per_second, until=done))
    worker.join()
    if trouble:
        raise trouble[0]
    found = {"old": 0, "new": 0}
    for each in outcomes:
        assert each.is_whole, each
        [weights] = [name for name, oracle in oracles.items() if each.text == oracle(each.seed)]
        found[weights] += 1
    return found


def test_weights_are_exchanged_and_damaged_ones_refused_without_a_failed_request(
    deployed, oracles, faults
):
    options = ["name=tiny", "num_replicas=2", "front=on"]
    deployed.deploy("model=models/old", *options)
    deployed.wait_for(deployed.answers)

    def exchange(name):
        deployed.deploy(f"model=models/{name}", *options)
        deployed.wait_for(
            lambda: all(deployed.text(oracles[name], 999) == oracles[name](999) for _ in range(5))
        )
        time.sleep(2)

    found = under_load(deployed, oracles, lambda: exchange("new"))
    assert found["old"]
    assert found["new"]
    back = under_load(deployed, oracles, lambda: exchange("old"))
    count = sum(found.values()) + sum(back.values())
    faults.add("S6", 2, 2, requests=count, failed=0)

    def break_it():
        deployed.deploy("model=models/damaged", *options)
        deployed.wait_for(
            lambda: "DEPLOY_FAILED" in deployed.status() or "UNHEALTHY" in deployed.status()
        )
        time.sleep(5)

    kept = under_load(deployed, oracles, break_it)
    assert kept["new"] == 0
    assert "damaged" in deployed.status()
    faults.add("S6-failing", 1, 1, requests=sum(kept.values()), failed=0)
