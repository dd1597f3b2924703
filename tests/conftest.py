"""Makes helpers that lie beside the tests importable, in spawned processes too."""

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parent / "engine"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
