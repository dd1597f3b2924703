"""Stops that save, one driver a run, and runs that follow the nodes of their cluster."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from victims import DEADLINE_SECONDS, Victim, prepare, title

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "cluster"))

from local import LOOPBACK, LocalCluster, trees  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RESUME_ME = 75
HANG_SECONDS = 8
NUM_STEPS, ELASTIC_STEPS = 1500, 900


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    prepare(home)
    return home


@pytest.fixture(scope="module")
def undisturbed(home):
    victim = Victim(home, "undisturbed", NUM_STEPS)
    assert victim.job.wait(DEADLINE_SECONDS) == 0
    return victim.losses()


def test_a_stopped_run_redoes_nothing_and_a_second_driver_is_refused(home, undisturbed, faults):
    victim = Victim(home, "stopped", NUM_STEPS, stdout=subprocess.PIPE)
    victim.wait_for(lambda: victim.step >= 30)
    second = Victim(home, "stopped", NUM_STEPS, stdout=subprocess.PIPE)
    output, _ = second.job.communicate(timeout=DEADLINE_SECONDS)
    assert second.job.returncode == 2
    assert "is being trained by process" in output
    assert "Traceback" not in output
    victim.job.send_signal(signal.SIGTERM)
    output, _ = victim.job.communicate(timeout=DEADLINE_SECONDS)
    assert victim.job.returncode == RESUME_ME
    assert f"saved at step {victim.step} of {NUM_STEPS}" in output
    assert victim.saved_step() == victim.step < NUM_STEPS
    stopped_at = victim.step

    again = Victim(home, "stopped", NUM_STEPS)
    again.wait_for(lambda: again.step > stopped_at)
    assert again.attempts()[-1]["state"]["step"] == stopped_at
    again.processes("rank")
    again.job.kill()  # the parent: its driver notices, saves and ends
    again.job.wait()
    _, alive = psutil.wait_procs(again.seen, timeout=60)
    assert not alive, [title(process) for process in alive]
    assert again.saved_step() == again.step < NUM_STEPS
    last = Victim(home, "stopped", NUM_STEPS)
    assert last.job.wait(DEADLINE_SECONDS) == 0
    assert last.losses() == undisturbed
    for plan_id in ("T6", "T4-parent", "T20"):
        faults.add(plan_id, 1, 1)


def test_a_rank_that_is_stopped_is_named_and_the_group_goes_on(home, undisturbed, faults):
    victim = Victim(home, "hung", NUM_STEPS, more_workers={"hang_seconds": HANG_SECONDS})
    victim.wait_for(lambda: victim.step >= 30)
    stopped = victim.processes("rank")[0]
    stopped.suspend()
    start = time.monotonic()
    victim.wait_for(lambda: len(victim.attempts()) > 1)
    seconds = time.monotonic() - start
    assert seconds < 30
    (failure,) = (event for event in victim.journal() if event["event"] == "failed")
    assert f"process {stopped.pid}), which shows no sign of life" in failure["failure"]
    report = (victim.folder / "hang-00000.txt").read_text()
    assert "no answer: stopped" in report
    assert "Thread 0x" in report  # the other rank's stacks
    assert victim.job.wait(DEADLINE_SECONDS) == 0
    assert victim.losses() == undisturbed
    faults.add("T7-stopped", 1, 1, limit=f"{HANG_SECONDS} s", restarted_after=f"{seconds:.0f} s")


def test_a_run_shrinks_with_its_cluster_and_grows_again(home, faults):
    """2 + 2 CPUs hold three ranks and a row task; one rank is left when the second node goes."""
    elastic = {"min": 1, "max": 3}
    with LocalCluster(num_workers=1, cpus_per_node=2) as cluster:
        environment = {**cluster.environment, "RAY_ADDRESS": f"{LOOPBACK}:{cluster._gcs_port}"}
        how = {"batch": 12, "workers": elastic, "environment": environment}
        victim = Victim(home, "elastic", ELASTIC_STEPS, **how)
        victim.wait_for(lambda: victim.step >= 30)
        for process in trees([cluster._processes.pop()]):
            process.kill()
        victim.wait_for(lambda: victim.attempts()[-1]["world_size"] == 1)
        cluster._start_node(f"--address={LOOPBACK}:{cluster._gcs_port}")
        assert victim.job.wait(DEADLINE_SECONDS) == 0
        attempts = victim.attempts()
        sizes = [attempt["world_size"] for attempt in attempts]
        assert (sizes[0], sizes[-1], min(sizes)) == (3, 3, 1)
        grown = next(event for event in victim.journal() if event.get("reason") == "resize")
        assert attempts[-1]["state"]["step"] == grown["step"]  # nothing is done twice to grow
        losses = victim.losses()
        assert sorted(losses) == list(range(1, ELASTIC_STEPS + 1))

        whole = Victim(home, "whole", ELASTIC_STEPS, **{**how, "workers": 1})
        assert whole.job.wait(DEADLINE_SECONDS) == 0
        pairs = [(losses[step], loss) for step, loss in whole.losses().items()]
        difference = np.abs([a - b for a, b in pairs if a is not None and b is not None])
        assert difference[:40].max() < 1e-5
        assert difference.max() < 0.05  # rounding, which thousands of steps carry on
        faults.add("T3", 1, 1, redone_on_growth=0, furthest_loss=f"{difference.max():.1e}")
