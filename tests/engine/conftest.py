"""Results of the scenarios that several tests look at; each starts its processes once."""

from pathlib import Path
from typing import Any, NamedTuple

import engine_scenarios as scenarios
import pytest
from distributed import run_ranks


class Life(NamedTuple):
    """What the ranks found, in rank order, and the folder they wrote to."""

    folder: Path
    ranks: list[dict[str, Any]]


def _live(tmp_path_factory: pytest.TempPathFactory, dtype: str) -> Life:
    folder = tmp_path_factory.mktemp(dtype)
    return Life(folder, run_ranks(2, scenarios.first_life, str(folder), {"dtype": dtype}))


@pytest.fixture(scope="session")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Every backend on two ranks in fp32: curves, dropped steps, checkpoints."""
    return _live(tmp_path_factory, "float32")


@pytest.fixture(scope="session")
def narrow_life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """The same in bf16."""
    return _live(tmp_path_factory, "bfloat16")


@pytest.fixture(scope="session")
def resumed(life: Life) -> list[dict[Any, Any]]:
    """The fp32 checkpoints in two new processes, on the same and on another stage."""
    options = {"dtype": "float32"}
    return run_ranks(
        2, scenarios.second_life, str(life.folder), options, scenarios.SAME + scenarios.OTHER_STAGE
    )


@pytest.fixture(scope="session")
def narrow_resumed(narrow_life: Life) -> list[dict[Any, Any]]:
    """The same in bf16."""
    options = {"dtype": "bfloat16"}
    folder = str(narrow_life.folder)
    return run_ranks(
        2, scenarios.second_life, folder, options, scenarios.SAME + scenarios.OTHER_STAGE
    )


@pytest.fixture(scope="session")
def alone(life: Life) -> dict[str, Any]:
    """The fp32 checkpoints in one new process, and what that one computes from the start."""
    return run_ranks(
        1, scenarios.life_alone, str(life.folder), {"dtype": "float32"}, scenarios.ONE_RANK
    )[0]
