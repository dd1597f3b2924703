"""The helper of the distributed tests reports failures and waits for nobody in vain."""

import os

import pytest
import torch
import torch.distributed as dist
from distributed import RankFailedError, run_ranks


def add_ranks(value: int) -> int:
    total = torch.tensor(value + dist.get_rank())
    dist.all_reduce(total)
    return int(total)


def fail_on_one(kind: str) -> None:
    if dist.get_rank() == 1:
        if kind == "raise":
            raise ValueError("rank one is unwell")
        os._exit(7)
    dist.barrier()


def test_results_come_in_rank_order():
    assert run_ranks(2, add_ranks, 10) == [21, 21]


@pytest.mark.parametrize(
    ("kind", "text"), [("raise", "rank one is unwell"), ("die", "rank 1 ended with exit code 7")]
)
def test_a_failing_rank_is_reported_though_others_wait_for_it(kind, text):
    with pytest.raises(RankFailedError, match=text):
        run_ranks(2, fail_on_one, kind)
