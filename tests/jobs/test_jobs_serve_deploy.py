"""`serve deploy` on a cluster of two nodes: new weights, and damaged ones."""

import asyncio
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
from serving import Deployed, Load, Oracle, write_model

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "cluster"))

import local  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PROMPT = "The list returns"


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
