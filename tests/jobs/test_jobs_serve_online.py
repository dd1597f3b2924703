"""What HTTP and Ray add is measured on all paths, over requests that are answered whole."""

import pytest
from _serve_online import (
    PATHS,
    SERVED,
    OnlineSettings,
    added,
    closed_loop,
    online,
    open_loop,
    opened,
    requests_of,
)
from _serve_online_page import describe_online, draw_online
from serving import write_model

from glm_dist.metrics.provenance import provenance

SMALL = OnlineSettings(num_requests=12, num_clients=4, turns=1, answer_tokens=(4, 16))


def test_loops_note_every_token_of_an_engine_alone(tmp_path):
    folder = write_model(tmp_path / "tiny")
    asked = sum(request.num_tokens for request in requests_of(folder, SMALL))
    with opened("engine", folder, SMALL) as run:
        closed = run(closed_loop, SMALL)
        times = run(open_loop, SMALL, 100.0)
    seconds = asked / closed["tokens_per_second"]
    assert closed["requests_per_second"] == pytest.approx(12 / seconds)
    assert 0 < times["ttft_ms"]["p50"] <= times["ttft_ms"]["p99"]
    assert times["between_ms"]["p50"] > 0


def test_the_page_shows_all_paths_and_what_they_cost(tmp_path):
    def cost(first, speed):
        times = {"p50": first, "p90": first, "p99": 2 * first}
        return {"ttft_ms": times, "between_ms": times, "tokens_per_second": speed}

    costs = [cost(20 + 3 * place, 200 - 10 * place) for place in range(len(PATHS))]
    paths = dict(zip(PATHS, costs, strict=True))
    found = {"paths": paths, "added": {path: added(paths[path], costs[0]) for path in SERVED}}
    found |= {"arrivals_per_second": 2.5, "settings": SMALL.model_dump(), "origin": provenance()}
    text = describe_online({**found["added"]["haproxy, front off"], "online": found})
    assert "add 3.0 ms" in text
    assert "leave 95.0% of" in text
    assert "| engine | 20.0 | 40.0 | 20.0 | 40.0 | 200.0 |  |  |" in text
    assert "| ray, front on | 32.0 | 64.0 | 32.0 | 64.0 | 160.0 | +12.0 | 80.0% |" in text
    draw_online(tmp_path / "online.png", found)
    assert (tmp_path / "online.png").stat().st_size > 5000


@pytest.mark.ray
@pytest.mark.slow
def test_all_paths_are_measured_against_the_engine_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("GLM_DIST_HOME", str(tmp_path))
    figures = online(write_model(tmp_path / "tiny"), SMALL)
    paths = figures["online"]["paths"]
    assert set(paths) == set(PATHS)
    for path in paths.values():
        assert path["tokens_per_second"] > 0
        assert 0 < path["ttft_ms"]["p50"] <= path["ttft_ms"]["p99"]
    alone, shortest = paths["engine"], paths["haproxy, front off"]
    milliseconds = shortest["ttft_ms"]["p50"] - alone["ttft_ms"]["p50"]
    assert figures["http_ttft_ms_added"] == pytest.approx(milliseconds)
    assert figures["http_throughput_share"] == pytest.approx(
        shortest["tokens_per_second"] / alone["tokens_per_second"]
    )
    assert figures["online"]["added"].keys() == SERVED.keys()
