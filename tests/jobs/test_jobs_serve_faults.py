"""What is done to a served model on Ray Serve, and that no client can tell: rows S of the plan."""

import asyncio
import signal
import threading
import time

import httpx
import pytest
from serving import Load, Oracle, Served, write_model

pytestmark = pytest.mark.ray
PROMPT = "The list returns"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_model(home / "models" / "tiny")
    return home


@pytest.fixture(scope="module")
def oracle(home):
    return Oracle(home / "models" / "tiny", PROMPT, max_tokens=300)


def disturbed(served, load, per_second, act):
    """The outcomes of a load during which something is done, and for a while after."""
    done = threading.Event()

    def work():
        try:
            time.sleep(1)
            act()
            time.sleep(1)
        finally:
            done.set()

    worker = threading.Thread(target=work)
    worker.start()
    outcomes = asyncio.run(load.run(per_second, until=done))
    worker.join()
    return outcomes


def failed(outcomes, oracle):
    """Those that did not get what an undisturbed engine gives."""
    return [
        (each.seed, each.status, each.error)
        for each in outcomes
        if not each.is_whole or each.text != oracle(each.seed)
    ]


def test_no_client_notices_a_killed_engine_and_sigterm_lets_streams_end(home, oracle, faults):
    """S1, S2 and S17, one of each; the slow tests do the whole of them."""
    with Served(home, "model=models/tiny", "num_replicas=2") as served:
        served.wait_for(lambda: len(served.processes("engine")) == 2)
        load = Load(served.url, oracle.body, stream=True)
        outcomes = disturbed(served, load, 4, lambda: served.signal("engine"))
        assert failed(outcomes, oracle) == []
        assert any(each.seconds > 0.3 for each in outcomes)
        streams, refused = terminate_under(served, oracle, 6)
    assert failed(streams, oracle) == []
    assert refused == {503}


def terminate_under(served, oracle, count):
    """SIGTERM with so many streams begun: what became of them, and of who came later."""
    load = Load(served.url, oracle.body, stream=True)
    refused = set()

    async def act():
        begun = asyncio.create_task(load.run(200, seconds=count / 200))
        while len([each for each in load.outcomes if each.first]) < count:
            await asyncio.sleep(0.01)
        served.job.send_signal(signal.SIGTERM)
        async with httpx.AsyncClient(base_url=served.url) as http:
            while not begun.done():
                reply = await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
                if reply.status_code != 200:
                    refused.add(reply.status_code)
                    assert int(reply.headers["retry-after"]) >= 1
                await asyncio.sleep(0.05)
        return await begun

    outcomes = asyncio.run(act())
    assert served.job.wait(90) == 0
    return outcomes, refused
