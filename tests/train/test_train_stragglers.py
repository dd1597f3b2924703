"""Ranks that keep the others waiting are named; ranks that wait are not."""

import json
import socket

import numpy as np
import pytest
from distributed import run_ranks
from train_scenarios import make_dataset, make_settings, train_with_a_slow_rank

from glm_dist.train.stragglers import slowness


def test_slowness_is_against_the_other_ranks():
    assert slowness(np.array([1.0, 1.0, 4.0, 1.0])).tolist() == [1, 1, 4, 1]
    assert slowness(np.array([3.0, 1.0])).tolist() == pytest.approx([3, 1 / 3])
    assert slowness(np.array([7.0])).tolist() == [1]


@pytest.mark.parametrize("backend", [{"backend": "torch"}, {"zero_stage": 2}])
def test_a_slow_rank_is_named_with_its_host_within_fifty_steps(tmp_path, backend, faults):
    dataset = make_dataset(tmp_path / "dataset")
    settings = make_settings(
        dataset,
        duration={"num_steps": 50},
        workers={"num_workers": 2},
        engine={"dtype": "float32", **backend},
        evaluation={"every_steps": 0, "num_rows": 0},
        log_every_steps=10,
        checkpoints={"every_steps": 50},
    )
    folder = tmp_path / "run"
    run_ranks(2, train_with_a_slow_rank, str(dataset.folder), str(folder), settings)
    events = [json.loads(line) for line in (folder / "events.jsonl").open()]
    (named,) = (event for event in events if event["event"] == "slow rank")
    assert (named["rank"], named["host"]) == (1, socket.gethostname())
    assert named["factor"] > 2
    faults.add("T8", 1, 1, named_at_step=named["step"])
