"""Makes helpers that lie beside the tests importable, in spawned processes too."""

import sys
from pathlib import Path

TESTS = Path(__file__).parent

for folder in (TESTS, TESTS / "engine", TESTS / "train", TESTS / "jobs", TESTS.parent / "jobs"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import pytest  # noqa: E402
from faults import FaultRecord  # noqa: E402


@pytest.fixture(scope="session")
def faults():
    """Takes down what came of the rows of the fault plan; written at the end where asked for."""
    record = FaultRecord()
    yield record
    record.write()
