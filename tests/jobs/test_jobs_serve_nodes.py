"""What is done to the nodes of a served model: rows S3 and S5 of the plan.

Two nodes of Ray on this machine, with a proxy, a front and an engine each. Clients ask one proxy or
the other, as a balancer has it, and ask again where a connection breaks.
"""

import asyncio
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from serving import BLOCKS, TITLES, Load, Oracle, Served, write_model
from victims import title

from glm_dist.serve.limits import RequestLimits
from glm_dist.serve.proxy import environment

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "cluster"))

from local import LOOPBACK, LocalCluster, free_ports, trees  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PROMPT = "The list returns"
PER_SECOND = 10
PROXY_KILLS, NODE_LOSSES = 3, 2
MOST_TRIES, PAUSE_SECONDS = 8, 0.5


@dataclass
class Balanced(Load):
    """Asks two addresses in turn, and the other one where one fails."""

    other: str = ""

    def __post_init__(self):
        self.answered, self.tries = {}, 0

    async def _ask(self, http, seed):
        for attempt in range(MOST_TRIES):
            base = (self.url, self.other)[(seed + attempt) % 2]
            async with httpx.AsyncClient(base_url=base, timeout=self.timeout) as own:
                outcome = await super()._ask(own, seed)
            self.tries += 1
            self.answered[seed] = outcome
            if outcome.is_whole:
                return
            await asyncio.sleep(PAUSE_SECONDS if attempt else 0)


class TwoNodes:
    """A served model on two nodes, each with its own port."""

    def __init__(self, home):
        self.cluster = LocalCluster(num_workers=1, cpus_per_node=2)
        [self.port] = free_ports(1)
        self.other = f"http://{LOOPBACK}:{self.port}"
        self.cluster.environment |= {
            **environment(RequestLimits()),
            "GLM_DIST_HOME": str(home),
            "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(self.port),
            "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        }
        self._home = home

    def __enter__(self):
        self.cluster.__enter__()
        address = {"RAY_ADDRESS": f"{LOOPBACK}:{self.cluster._gcs_port}"}
        try:
            self.served = Served(
                self._home,
                "model=models/tiny",
                "num_replicas=2",
                "num_fronts=2",
                environment={**self.cluster.environment, **address},
            )
            self.served.wait_for(self.is_whole)
        except BaseException:
            self.cluster.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        self.served.__exit__()
        self.cluster.__exit__()

    def node(self, number):
        """Processes of a node."""
        return trees([self.cluster._processes[number]])

    def of(self, number, kind):
        return [one for one in self.node(number) if TITLES[kind] in title(one)]

    def is_whole(self):
        """Whether both addresses answer, and both engines are known behind each."""
        return all(self.engines_behind(url) == 2 for url in (self.served.url, self.other))

    def engines_behind(self, url):
        try:
            text = httpx.get(f"{url}/metrics", timeout=5).text
        except httpx.HTTPError:
            return 0
        free = [line for line in text.splitlines() if line.startswith("glm_free_blocks{")]
        return round(sum(float(line.split()[-1]) for line in free) / BLOCKS)

    def load(self, oracle):
        return Balanced(self.served.url, oracle.body, other=self.other)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_model(home / "models" / "tiny")
    return home


@pytest.fixture(scope="module")
def oracle(home):
    return Oracle(home / "models" / "tiny", PROMPT, max_tokens=60)


def disturbed(load, act):
    """A load during which something is done in another thread; what that gave."""

    async def run():
        until = asyncio.Event()
        running = asyncio.create_task(load.run(PER_SECOND, until=until))
        await asyncio.sleep(2)
        try:
            return await asyncio.to_thread(act)
        finally:
            await asyncio.sleep(2)
            until.set()
            await running

    return asyncio.run(run())


def answers(url):
    """Whether a new connection is answered."""
    try:
        return httpx.get(f"{url}/version", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def failed(load, oracle):
    return [
        (seed, one.status, one.error)
        for seed, one in load.answered.items()
        if not one.is_whole or one.text != oracle(seed)
    ]


def test_of_two_proxies_one_is_killed(home, oracle, faults):
    """S3."""
    waits = []

    def kill():
        for number in range(PROXY_KILLS):
            [proxy] = nodes.of(number % 2, "proxy")
            proxy.kill()
            start = time.monotonic()
            while not any(nodes.engines_behind(url) for url in (nodes.served.url, nodes.other)):
                time.sleep(0.02)
            waits.append(time.monotonic() - start)
            nodes.served.wait_for(nodes.is_whole)
            time.sleep(random.uniform(0, 1))

    with TwoNodes(home) as nodes:
        load = nodes.load(oracle)
        disturbed(load, kill)
        broken = [one for one in load.outcomes if not one.is_whole]
    assert failed(load, oracle) == []
    faults.add(
        "S3",
        PROXY_KILLS,
        sum(wait <= 1 for wait in waits),
        requests=len(load.answered),
        asked_again=len(broken),
        longest_wait=f"{max(waits):.2f} s",
    )
    assert max(waits) <= 1


def test_a_node_is_lost_with_its_engine(home, oracle, faults):
    """S5: what was in work there is asked again, and the other node takes the engine."""
    loads, backs = [], []

    def lose():
        assert nodes.of(1, "engine"), "both engines are on the head"
        for process in trees([nodes.cluster._processes.pop()]):
            process.kill()
        start = time.monotonic()
        nodes.served.wait_for(lambda: nodes.engines_behind(nodes.served.url) < 2)
        nodes.served.wait_for(lambda: nodes.engines_behind(nodes.served.url) == 2)
        return time.monotonic() - start

    for _ in range(NODE_LOSSES):
        with TwoNodes(home) as nodes:
            loads.append(nodes.load(oracle))
            backs.append(disturbed(loads[-1], lose))
    assert [failed(load, oracle) for load in loads] == [[]] * NODE_LOSSES
    faults.add(
        "S5",
        NODE_LOSSES,
        sum(back <= 30 for back in backs),
        requests=sum(len(load.answered) for load in loads),
        failed=0,
        asked_again=sum(not one.is_whole for load in loads for one in load.outcomes),
        capacity_back=", ".join(f"{back:.0f} s" for back in backs),
    )
    assert max(backs) <= 30
