"""A measurement in a process of its own, which does not outlive the job that asked for it."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

JOBS = Path(__file__).parents[2] / "jobs"
JOB = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {jobs!r})
from _apart import apart

def measure(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(300)

if __name__ == "__main__":
    apart(measure, {told!r}, num_threads=1)
"""


def test_a_measurement_ends_with_a_job_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("GLM_DIST_HOME", str(tmp_path))
    script, told = tmp_path / "job.py", tmp_path / "pid"
    script.write_text(JOB.format(jobs=str(JOBS), told=str(told)))
    with subprocess.Popen([sys.executable, str(script)]) as job:
        while not (told.exists() and told.read_text()):
            assert job.poll() is None
            time.sleep(0.05)
        measuring = psutil.Process(int(told.read_text()))
        job.kill()
    measuring.wait(timeout=60)
