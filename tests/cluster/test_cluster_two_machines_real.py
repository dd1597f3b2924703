"""The slow tier: cluster/two_machines.sh on two machines, network namespaces of this one."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAD, WORKER = "10.213.7.1", "10.213.7.2"
START_SECONDS = 180


def run(*command, check=True):
    return subprocess.run(command, check=check, capture_output=True, text=True)


def can_make_machines():
    try:
        name = f"glm-{os.getpid()}-try"
        done = run("ip", "netns", "add", name, check=False)
        run("ip", "netns", "delete", name, check=False)
        return done.returncode == 0
    except OSError:
        return False


pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_machines(), reason="network namespaces are not permitted here"),
]


@pytest.fixture
def machines():
    """Two namespaces with a cable between them."""
    names = [f"glm-{os.getpid()}-{end}" for end in "ab"]
    cable = [f"glm{os.getpid()}{end}" for end in "ab"]
    for name in names:
        run("ip", "netns", "add", name)
    run("ip", "link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
    for name, end, address in zip(names, cable, (HEAD, WORKER), strict=True):
        run("ip", "link", "set", end, "netns", name)
        run("ip", "-n", name, "address", "add", f"{address}/24", "dev", end)
        run("ip", "-n", name, "link", "set", end, "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
    yield names, cable
    for name in names:
        run("ip", "netns", "delete", name, check=False)


def on(machine, home, *arguments, interface):
    """The script on one of the machines, as a process of our own."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": interface}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for name in ("RAY_ADDRESS", "GLM_DIST_HOME"):
        environment.pop(name, None)
    return subprocess.Popen(
        ["ip", "netns", "exec", machine, "cluster/two_machines.sh", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=open(home / f"{machine}-{arguments[0]}.log", "w"),  # noqa: SIM115
        stderr=subprocess.STDOUT,
    )


def submitted(machine, home, interface, *command):
    """Submit until the cluster is up; the output of a job that succeeded."""
    log = home / f"{machine}-submit.log"
    deadline = time.monotonic() + START_SECONDS
    while True:
        code = on(machine, home, "submit", str(home), *command, interface=interface).wait()
        if code == 0 or time.monotonic() > deadline:
            assert code == 0, log.read_text()[-3000:]
            return log.read_text()
        time.sleep(3)


def test_a_run_over_two_machines(machines, tmp_path):
    (first, second), (first_end, second_end) = machines
    home = tmp_path
    texts = [f"the list number {number} returns its items in order." for number in range(400)]
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    (home / "words.jsonl").write_text(lines)
    temporary = f"--temp-dir={tempfile.mkdtemp(prefix='ray-')}"  # others look into Ray's own
    nodes = [
        on(first, home, "head", str(home), HEAD, "--num-cpus=2", temporary, interface=first_end),
    ]
    try:
        prepare = [
            "python",
            "jobs/prepare_data.py",
            "output=data/words",
            "tokenizer.vocab_size=300",
        ]
        source = f"sources=[{{name: words, path: {home / 'words.jsonl'}}}]"
        submitted(first, home, first_end, *prepare, source)
        worker = ["worker", str(home), HEAD, "--num-cpus=1", temporary]
        nodes.append(on(second, home, *worker, interface=second_end))
        train = ["python", "jobs/pretrain.py", "name=two", "dataset=data/words"]
        train += ["duration={num_steps: 4}", "rows.sequence_length=64", "workers.num_workers=2"]
        train += ["batch={global_batch_size: 4, micro_batch_size: 2}", "log_every_steps=1"]
        train += ["checkpoints.every_steps=2", "evaluation.num_rows=0", "sinks.wandb=off"]
        output = submitted(first, home, first_end, *train)
        assert "4/4" in output
        final = json.loads((home / "runs/two/final.json").read_text())
        assert final["engine"]["world_size"] == 2
    finally:
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            node.wait(60)
