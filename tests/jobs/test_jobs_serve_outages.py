"""What is done to a served model from outside of it: rows S7 and S10 of the plan."""

import asyncio
import signal
import socket
import time
from statistics import median

import httpx
import psutil
import pytest
from serving import Load, Oracle, Served, write_model

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PROMPT = "The list returns"
NUM_SLOW = 100
"""Clients of each kind."""
CLOSED_SECONDS = 15


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_model(home / "models" / "tiny")
    return home


def test_the_head_of_ray_dies_and_all_comes_back(home, faults):
    """S7 without Redis: whoever watches the server starts it again, by the same command line."""
    oracle = Oracle(home / "models" / "tiny", PROMPT, max_tokens=20)
    with Served(home, "model=models/tiny") as served:
        before = set(psutil.Process(served.job.pid).children(recursive=True))
        [head] = [one for one in before if one.name() == "gcs_server"]
        head.send_signal(signal.SIGKILL)
        noticed = served.wait_for(lambda: not served.ready())
        back = noticed + served.wait_for(served.ready)
        assert not psutil.wait_procs(before, timeout=60)[1]
        [outcome] = asyncio.run(Load(served.url, oracle.body).run(10, count=1))
        assert outcome.text == oracle(0)
    assert noticed <= 5
    assert back <= 60
    faults.add("S7", 1, 1, not_ready_after=f"{noticed:.1f} s", back_after=f"{back:.1f} s")


def test_three_hundred_slow_clients_hold_nobody_up(home, faults):
    """S10: a third send headers slowly, a third bodies, a third nothing at all."""
    oracle = Oracle(home / "models" / "tiny", PROMPT, max_tokens=20)
    with Served(home, "model=models/tiny") as served:
        calm = asyncio.run(Load(served.url, oracle.body).run(4, seconds=8))
        slow = [_slow_client(served.port, number) for number in range(3 * NUM_SLOW)]
        start = time.monotonic()
        busy = asyncio.run(Load(served.url, oracle.body).run(4, seconds=8))
        left = [one for one in slow if not _is_closed(one, start + CLOSED_SECONDS)]
        seconds = time.monotonic() - start
        assert httpx.get(f"{served.url}/health/ready", timeout=10).status_code == 200
    for one in slow:
        one.close()
    for outcomes in (calm, busy):
        assert [one.error for one in outcomes if not one.is_whole] == []
    waits = [median(one.seconds for one in outcomes) for outcomes in (calm, busy)]
    faults.add(
        "S10",
        3 * NUM_SLOW,
        3 * NUM_SLOW - len(left),
        closed_after=f"{seconds:.1f} s",
        others=f"{waits[1] / waits[0]:.2f} x as slow",
    )
    assert not left
    assert waits[1] <= 2 * waits[0]


def _slow_client(port, number):
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    kind = number % 3
    if kind == 0:
        client.sendall(head)
    elif kind == 1:
        client.sendall(head + b'content-length: 1000\r\n\r\n{"prompt":')
    return client


def _is_closed(client, deadline):
    client.settimeout(max(0.01, deadline - time.monotonic()))
    try:
        while client.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True
