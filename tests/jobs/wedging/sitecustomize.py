"""Started in every process of a served model that tests wedge: its engine does what a file says.

In the folder GLM_DIST_WEDGES a file `hang` makes the next step of some engine never end, and
`poison` makes its numbers none. The engine that takes a file removes it, so its successor is sound.
"""

import os
import sys
import threading
import time
from pathlib import Path

WEDGES = Path(os.environ["GLM_DIST_WEDGES"])
MODULE = "glm_dist.inference.engine"


def takes(name):
    try:
        (WEDGES / name).unlink()
    except FileNotFoundError:
        return False
    return True


def wedge_engines():
    while not hasattr(sys.modules.get(MODULE), "Engine"):
        time.sleep(0.05)
    engine = sys.modules[MODULE].Engine
    step = engine.step

    def wedged(self):
        if takes("hang"):
            time.sleep(3600)
        if takes("poison"):
            decode = self._runner.decode
            self._runner.decode = lambda rows: decode(rows) * float("nan")
        return step(self)

    engine.step = wedged


threading.Thread(target=wedge_engines, daemon=True).start()
