"""Datasets answered by pools of engines: all rows once and in order, whatever breaks on the way."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from glm_dist.errors import DataError, ModelError
from glm_dist.evaluate.part_work import PartWork
from glm_dist.evaluate.pipeline import Parts
from glm_dist.evaluate.pool_settings import PoolSettings

ROWS = [(number, f"line {number}", f"text {number} 好") for number in range(50)]
POOL = PoolSettings(num_engines=2, rows_per_part=8)
EXPECTED = [{"place": place, "text": text.upper()} for _, place, text in ROWS]


@dataclass(frozen=True)
class Upper(PartWork):
    """Writes its rows in capitals; the process may die, or refuse, at one of them."""

    dies_at: int = -1
    marker: str = ""
    refuses_at: int = -1

    def open(self):
        def answer(rows):
            numbers = [number for number, _, _ in rows]
            if self.dies_at in numbers and not Path(self.marker).exists():
                Path(self.marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if self.refuses_at in numbers:
                raise ModelError(f"row {self.refuses_at} has no answer")
            return [{"place": place, "text": text.upper()} for _, place, text in rows]

        return answer


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False):
        yield


def parts_of(folder, rows=ROWS, told=None, pool=POOL):
    return Parts(folder, rows, told or {"model": "a"}, pool)


def work(**changes):
    return Upper("model", None, "cpu", **changes)


def test_all_rows_are_answered_once_and_in_order(tmp_path):
    parts = parts_of(tmp_path)
    assert sorted(parts.answer(work())) == [2, 8, 8, 8, 8, 8, 8]
    assert parts.read() == EXPECTED
    assert list(parts_of(tmp_path).answer(work(refuses_at=0))) == []


def test_an_engine_that_dies_costs_no_row(tmp_path):
    marker = tmp_path / "died"
    parts = parts_of(tmp_path / "parts")
    assert sum(parts.answer(work(dies_at=20, marker=str(marker)))) == 50
    assert marker.exists()
    assert parts.read() == EXPECTED


def test_a_run_that_broke_off_answers_only_what_is_missing(tmp_path):
    with pytest.raises(ModelError, match="row 49 has no answer"):
        list(parts_of(tmp_path).answer(work(refuses_at=49)))
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    again = parts_of(tmp_path)
    assert len(again.missing) == 7 - len(kept)
    assert 6 in again.missing
    list(again.answer(work()))
    assert again.read() == EXPECTED
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in kept.items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"told": {"model": "b"}}, "model"),
        ({"rows": [*ROWS[:-1], (49, "line 49", "other")]}, "rows_sha256"),
        ({"pool": POOL.model_copy(update={"rows_per_part": 9})}, "rows_per_part"),
    ],
)
def test_a_folder_of_other_answers_is_refused_by_what_differs(tmp_path, changes, named):
    parts_of(tmp_path)
    with pytest.raises(DataError, match=rf"something else \({named} differ\)"):
        parts_of(tmp_path, **changes)
