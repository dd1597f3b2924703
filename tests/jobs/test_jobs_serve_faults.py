"""What is done to a served model on Ray Serve, and that no client can tell: rows S of the plan."""

import asyncio
import os
import random
import signal
import threading
import time
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import pytest
from serving import BLOCKS, Load, Oracle, Served, wait_for_engines, write_model

pytestmark = pytest.mark.ray
PROMPT = "The list returns"
TRIALS = int(os.environ.get("GLM_DIST_FAULT_TRIALS", "10"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_model(home / "models" / "tiny")
    return home


@pytest.fixture(scope="module")
def oracle(home):
    return Oracle(home / "models" / "tiny", PROMPT, max_tokens=300)


def disturbed(load, per_second, act):
    """The outcomes of a load during which something is done, and for a while after."""
    done, trouble = threading.Event(), []

    def work():
        try:
            time.sleep(1)
            act()
            time.sleep(1)
        except BaseException as error:
            trouble.append(error)
        finally:
            done.set()

    worker = threading.Thread(target=work)
    worker.start()
    outcomes = asyncio.run(load.run(per_second, until=done))
    worker.join()
    if trouble:
        raise trouble[0]
    return outcomes


def failed(outcomes, oracle):
    """Those that did not get what an undisturbed engine gives."""
    return [
        (each.seed, each.status, each.error)
        for each in outcomes
        if not each.is_whole or each.text != oracle(each.seed)
    ]


@pytest.mark.parametrize("proxy", ["ray", pytest.param("haproxy", marks=pytest.mark.slow)])
def test_no_client_notices_a_killed_engine_and_sigterm_lets_streams_end(
    proxy, home, oracle, faults
):
    """S1, S2 and S17, one of each; the slow tests do the whole of them."""
    with Served(home, "model=models/tiny", "num_replicas=2", f"proxy={proxy}") as served:
        wait_for_engines(served, 2)
        load = Load(served.url, oracle.body, stream=True)
        outcomes = disturbed(load, 4, lambda: served.signal("engine"))
        assert failed(outcomes, oracle) == []
        streams, refused = terminate_under(served, oracle, 6)
    assert failed(streams, oracle) == []
    assert refused == {503}


def terminate_under(served, oracle, count):
    """SIGTERM with so many streams begun: what became of them, and of who came later."""
    load = Load(served.url, oracle.body, stream=True)
    refused = set()

    async def act():
        begun = asyncio.create_task(load.run(200, count=count))
        while len([each for each in load.outcomes if each.first]) < count:
            await asyncio.sleep(0.01)
        served.job.send_signal(signal.SIGTERM)
        async with httpx.AsyncClient(base_url=served.url) as http:
            while not begun.done():
                reply = await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
                if reply.status_code != 200:
                    refused.add(reply.status_code)
                    assert int(reply.headers["retry-after"]) >= 1
                    assert reply.headers["x-request-id"]
                await asyncio.sleep(0.05)
        return await begun

    outcomes = asyncio.run(act())
    assert served.job.wait(90) == 0
    return outcomes, refused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan_id", "stream", "per_second", "max_tokens"),
    [("S1", False, 30, 40), ("S2", True, 15, 100)],
)
def test_engines_are_killed_and_nothing_fails(
    home, faults, plan_id, stream, per_second, max_tokens
):
    oracle = Oracle(home / "models" / "tiny", PROMPT, max_tokens)
    restarts = []

    def kill():
        for _ in range(TRIALS):
            served.signal("engine")
            time.sleep(random.uniform(0, 1))
            restarts.append(wait_for_engines(served, 3))

    with Served(home, "model=models/tiny", "num_replicas=3") as served:
        wait_for_engines(served, 3)
        outcomes = disturbed(Load(served.url, oracle.body, stream), per_second, kill)
    seconds = [each.seconds for each in outcomes]
    assert failed(outcomes, oracle) == []
    faults.add(
        plan_id,
        TRIALS,
        TRIALS,
        requests=len(outcomes),
        failed=0,
        median=f"{median(seconds):.2f} s",
        p99=f"{np.percentile(seconds, 99):.2f} s",
        median_replacement=f"{median(restarts):.1f} s",
    )


@pytest.mark.slow
def test_a_killed_controller_is_not_noticed(home, oracle, faults):
    def kill():
        for _ in range(3):
            old = served.signal("controller")
            served.wait_for(lambda old=old: old not in served.processes("controller"))
            served.wait_for(lambda: served.processes("controller"))
            time.sleep(3)

    with Served(home, "model=models/tiny", "num_replicas=2") as served:
        outcomes = disturbed(Load(served.url, oracle.body, stream=True), 4, kill)
        assert served.stop()[0] == 0
    assert failed(outcomes, oracle) == []
    faults.add("S4", 3, 3, requests=len(outcomes), failed=0)


@pytest.mark.slow
def test_a_stopped_engine_is_noticed_and_replaced(home, oracle, faults):
    """The only engine there is: what it had in work is answered by the one that comes after it."""
    noticed, replaced = [], []

    def stop():
        served.signal("engine", signal.SIGSTOP)
        noticed.append(served.wait_for(lambda: not served.ready()))
        replaced.append(noticed[0] + served.wait_for(served.ready))

    with Served(home, "model=models/tiny") as served:
        load = Load(served.url, oracle.body, stream=True)
        outcomes = asyncio.run(begin_then(load, 8, stop))
    assert failed(outcomes, oracle) == []
    assert noticed[0] <= 10
    assert replaced[0] <= 30
    counts = {"not_ready_after": f"{noticed[0]:.1f} s", "replaced_after": f"{replaced[0]:.1f} s"}
    faults.add("S13-stopped", 1, 1, **counts, streams=8, failed=0)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hang", "poison"])
def test_a_wedged_engine_is_noticed_and_replaced(how, home, oracle, faults, tmp_path):
    """A step that never ends, and numbers that are none; no text is wrong, and none that began
    before a step hung is cut."""
    noticed, replaced = [], []

    def wedge():
        (tmp_path / how).touch()
        noticed.append(served.wait_for(lambda: not served.ready()))
        replaced.append(noticed[0] + served.wait_for(served.ready))

    path = str(Path(__file__).parent / "wedging")
    environment = {"PYTHONPATH": path, "GLM_DIST_WEDGES": str(tmp_path)}
    with Served(home, "model=models/tiny", environment=environment) as served:
        load = Load(served.url, oracle.body, stream=True)
        outcomes = asyncio.run(begin_then(load, 8, wedge))
        after = asyncio.run(Load(served.url, oracle.body).run(10, count=5))
    assert failed(after, oracle) == []
    broken = failed(outcomes, oracle)
    assert all(each.error for each in outcomes if not each.is_whole)
    assert all(oracle(each.seed).startswith(each.text) for each in outcomes)
    assert not broken or how == "poison"
    assert noticed[0] <= 10
    assert replaced[0] <= 30
    counts = {f"{how}_not_ready_after": f"{noticed[0]:.1f} s"}
    counts |= {f"{how}_replaced_after": f"{replaced[0]:.1f} s", f"{how}_streams_ended": len(broken)}
    faults.add("S13-wedged", 1, 1, **counts)


async def begin_then(load, count, act):
    """So many streams, and something done once they have begun."""
    asking = asyncio.create_task(load.run(200, count=count))
    while len([each for each in load.outcomes if each.first]) < count:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(act)
    return await asking


@pytest.mark.slow
def test_sigterm_lets_twenty_streams_end(home, oracle, faults):
    with Served(home, "model=models/tiny") as served:
        start = time.monotonic()
        outcomes, refused = terminate_under(served, oracle, 20)
        seconds = time.monotonic() - start
    assert failed(outcomes, oracle) == []
    assert refused == {503}
    faults.add("S17", len(outcomes), len(outcomes), all_ended_after=f"{seconds:.1f} s")


@pytest.mark.slow
def test_clients_that_leave_free_their_slots(home, oracle, faults):
    """At random tokens, 500 of them, in bursts of ten; every other one asks for four samples."""
    rng, waits = random.Random(0), []
    body = {**oracle.body, "max_tokens": 900, "stream": True}

    async def leave(http, number):
        asked = {**body, "seed": number, "n": 1 + 3 * (number % 2)}
        async with http.stream("POST", "/v1/completions", json=asked) as reply:
            lines, left = reply.aiter_lines(), rng.randrange(60)
            async for _ in lines:
                left -= 1
                if left < 0:
                    return

    async def leave_all(count):
        async with httpx.AsyncClient(base_url=served.url, timeout=120) as http:
            await asyncio.gather(*(leave(http, number) for number in range(count)))

    with Served(home, "model=models/tiny") as served:
        for _ in range(50):
            asyncio.run(leave_all(10))
            waits.append(served.wait_for(lambda: served.gauge("glm_running") == 0))
        assert served.gauge("glm_waiting") == 0
        assert served.gauge("glm_free_blocks") == BLOCKS
        share = served.gauge("glm_generated_tokens") / (250 * 900 + 250 * 4 * 900)
    assert share < 0.5
    # The gauge itself is half a second late.
    counts = {"longest": f"{max(waits):.1f} s", "median": f"{median(waits):.2f} s"}
    faults.add("S12", 500, 500, **counts, generated=f"{share:.0%} of what was asked for")


@pytest.mark.slow
def test_five_times_the_load_is_answered_at_the_speed_of_one(home, faults):
    oracle = Oracle(home / "models" / "tiny", PROMPT, max_tokens=300)
    sizes = ["engine.max_running=4", "engine.max_waiting=8"]
    with Served(home, "model=models/tiny", *sizes) as served:
        peak = closed_rate(served, oracle, clients=12, seconds=20)
        load = Load(served.url, oracle.body)
        start = time.monotonic()
        outcomes = asyncio.run(load.run(5 * peak, seconds=40))
        seconds = time.monotonic() - start
        again = Load(served.url, oracle.body)
        recovered = asyncio.run(again.run(peak / 2, seconds=5))
    whole = [each for each in outcomes if each.is_whole]
    refused = [each for each in outcomes if not each.is_whole]
    assert {each.status for each in refused} == {429}
    assert failed(whole, oracle) == []
    assert failed(recovered, oracle) == []
    share = len(whole) / seconds / peak
    waits = [each.seconds for each in refused]
    faults.add(
        "S11",
        1,
        int(share >= 0.9),
        requests=len(outcomes),
        goodput=f"{share:.0%} of peak",
        refused=len(refused),
        median_refusal=f"{1e3 * median(waits):.0f} ms",
    )
    assert share >= 0.9


def closed_rate(served, oracle, clients, seconds):
    """Requests a second of so many clients that ask one after the other."""

    async def client(http, number, deadline):
        count = 0
        while time.monotonic() < deadline:
            reply = await http.post("/v1/completions", json={**oracle.body, "seed": number})
            count += reply.status_code == 200
        return count

    async def ask():
        async with httpx.AsyncClient(base_url=served.url, timeout=120) as http:
            deadline = time.monotonic() + seconds
            return await asyncio.gather(*(client(http, one, deadline) for one in range(clients)))

    start = time.monotonic()
    return sum(asyncio.run(ask())) / (time.monotonic() - start)


@pytest.mark.slow
def test_engines_come_and_go_with_the_load_and_nothing_fails(home, faults):
    oracle = Oracle(home / "models" / "tiny", PROMPT, max_tokens=500)
    scaling = ["max_replicas=3", "engine.max_running=2", "upscale_seconds=1", "downscale_seconds=5"]
    most = []

    def grow():
        most.append(wait_for_engines(served, 3))
        time.sleep(2)

    with Served(home, "model=models/tiny", *scaling) as served:
        outcomes = disturbed(Load(served.url, oracle.body, stream=True), 6, grow)
        shrinking = Load(served.url, oracle.body, stream=True)
        calm = disturbed(
            shrinking,
            0.5,
            lambda: served.wait_for(lambda: len(served.processes("engine")) == 1),
        )
    assert failed([*outcomes, *calm], oracle) == []
    count = len(outcomes) + len(calm)
    faults.add("S-scale", 1, 1, requests=count, failed=0, to_three_after=f"{most[0]:.0f} s")
