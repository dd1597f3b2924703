"""What HTTP and Ray add is measured on all paths, over requests that are answered whole."""

import pytest
from _serve_online import PATHS, OnlineSettings, online
from serving import write_model


@pytest.mark.ray
@pytest.mark.slow
def test_all_paths_are_measured_against_the_engine_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("GLM_DIST_HOME", str(tmp_path))
    folder = write_model(tmp_path / "tiny")
    settings = OnlineSettings(num_requests=12, num_clients=4, turns=1, answer_tokens=(4, 16))
    figures = online(folder, settings)
    assert set(figures["paths"]) == set(PATHS)
    for path in figures["paths"].values():
        assert path["tokens_per_second"] > 0
        assert 0 < path["ttft_ms"]["p50"] <= path["ttft_ms"]["p99"]
    alone, off = (figures["paths"][name] for name in PATHS[:2])
    added = off["ttft_ms"]["p50"] - alone["ttft_ms"]["p50"]
    assert figures["http_ttft_ms_added"] == pytest.approx(added)
    assert figures["http_throughput_share"] == pytest.approx(
        off["tokens_per_second"] / alone["tokens_per_second"]
    )
    print(figures)
