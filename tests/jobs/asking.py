"""A job asked as a user asks it, and a model of random weights to ask it about."""

import json
import os
import subprocess
import sys
from pathlib import Path

from glm_dist.engine import save_weights
from glm_dist.engine.folders import CONFIG
from glm_dist.model import ModelSettings, build_model

ROOT = Path(__file__).parents[2]


def write_random_model(folder, tokenizer, **changes):
    """A finished model folder with its tokenizer."""
    shape = {"preset": None, "num_layers": 1, "hidden_size": 32, "num_heads": 2, **changes}
    settings = ModelSettings(vocab_size=tokenizer.vocab_size, **shape)
    save_weights(folder, dict(build_model(settings).named_parameters()))
    tokenizer.save(folder)
    text = json.dumps({"model": settings.model_dump(mode="json")})
    (folder / CONFIG).write_text(text)
    return folder


def run_job(home, job, *arguments):
    """What came of `jobs/JOB`; a mistake of the user shows no stack trace."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / job), *arguments],
        env={**os.environ, "GLM_DIST_HOME": str(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done
