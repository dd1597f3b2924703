"""Makes helpers that lie beside the tests importable, in spawned processes too."""

import sys
from pathlib import Path

TESTS = Path(__file__).parent

for folder in (TESTS, TESTS / "engine", TESTS / "train", TESTS / "jobs", TESTS.parent / "jobs"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
