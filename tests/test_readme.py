"""Every command of the README is run, shortened by overrides, or accounted for by name."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
WORDS = "the list returns a number of items when the given value is not in a range".split()

SHORT = [
    "duration={num_steps: 4}",
    "batch={global_batch_size: 4, micro_batch_size: 2}",
    "rows.sequence_length=64",
    "model={preset: null, num_layers: 1, hidden_size: 32, num_heads: 2}",
    "evaluation.num_rows=4",
    "checkpoints.every_steps=4",
    "log_every_steps=1",
    "sinks={wandb: off, tensorboard: false}",
]
"""What makes a run of any config short; given before the README's own overrides."""

NOT_RUN_HERE = {
    "make": "they set up an environment of their own; their targets are looked up",
    "kubectl": "it needs a Kubernetes cluster; the files it names are looked up",
    "cluster/two_machines.sh": "it needs two machines; tests/cluster runs it with a stand-in",
}


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


COMMANDS = [
    line for block in blocks("bash") for line in block.splitlines() if line and line[0] != "#"
]


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A user's home and working folder, with the text that the README's YAML speaks of."""
    place = tmp_path_factory.mktemp("user")
    for name in ("jobs", "cluster", "glm_dist"):
        (place / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=80)) + "." for _ in range(200)]
    (place / "data/books").mkdir(parents=True)
    (place / "data/poems").mkdir()
    (place / "data/books/all.txt").write_text("\n\n".join(texts[:150]))
    poems = [{"paragraphs": [text, text[::-1]]} for text in texts[150:]]
    (place / "data/poems/all.json").write_text(json.dumps(poems))
    evaluated = "\n".join(poems[3]["paragraphs"])
    (place / "data/evaluation.jsonl").write_text(json.dumps({"text": evaluated}) + "\n")
    [config] = [block for block in blocks("yaml") if block.startswith("# my_data.yaml")]
    config = config.replace("/data/", f"{place}/data/").replace("16000", "330")
    (place / "reviews").mkdir()
    for name in ("train", "test"):
        rows = [f"{texts[row][:60]},{'good' if row % 2 else 'bad'}" for row in range(40)]
        (place / f"reviews/{name}.csv").write_text("\n".join(["text,label", *rows]))
    (place / "my_data.yaml").write_text(config)
    return place


def environment(user):
    return {**os.environ, "HOME": str(user), "GLM_DIST_HOME": str(user / ".glm_dist")}


def run(user, command):
    script, *arguments = [argument.replace("~", str(user)) for argument in command]
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=user,
        env=environment(user),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def serve(user, command):
    """Serve until it says that it does, and end it; what it said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, *command, f"port={port}"],
        cwd=user,
        env=environment(user),
        stdout=subprocess.PIPE,
        text=True,
    ) as job:
        said = next((line for line in job.stdout if line.startswith("serving")), "")
        job.terminate()
        assert job.wait() == 0
    assert f":{port}/v1" in said
    return said


def run_job(user, command):
    """Run a job, a training run shortened, a server until it serves."""
    name = Path(command[0]).stem
    if name == "serve":
        return serve(user, command)
    if name == "pretrain" and "--config" in command:
        place = command.index("--config") + 2
        command = [*command[:place], *SHORT, *command[place:]]
    if name == "finetune":
        command = [*command, "epochs=1", "rows.sequence_length=64", SHORT[-1]]
    if name == "benchmark":
        command = [*command, "dataset=data/mine", *SHORT[1:], "--turns", "1"]
    return run(user, command)


def test_the_commands_for_text_of_ones_own_run_one_after_the_other(user):
    [block] = [block for block in blocks("bash") if "prepare_data.py --help" in block]
    outputs = {}
    for line in block.splitlines():
        program, *command = shlex.split(line, comments=True)
        assert program == "python"
        outputs[line] = run_job(user, command)
    assert (user / ".glm_dist/data/mine/manifest.json").exists()
    manifest = json.loads((user / ".glm_dist/data/mine/manifest.json").read_text())
    assert sum(manifest["report"]["excluded"].values()) == 1
    assert any("hours" in output and "FLOP" in output for output in outputs.values())
    assert (user / ".glm_dist/runs/mine/report.md").exists()
    assert json.loads((user / "speed.json").read_text())["vs_bare_loop"] > 0
    shutil.rmtree(user / ".glm_dist/runs")


def test_the_cluster_command_names_a_run_that_fits_its_workers(user):
    """Through `--plan`, which checks all settings; tests/jobs submits such a command for real."""
    [line] = [line for line in COMMANDS if line.startswith("ray job submit")]
    words = shlex.split(line)
    assert words[:6] == ["ray", "job", "submit", "--working-dir", ".", "--"]
    command = words[words.index("python") + 1 :]
    dataset = ["dataset=data/mine", "--plan"]
    if not (user / ".glm_dist/data/mine/manifest.json").exists():
        run(user, ["jobs/prepare_data.py", "--config", "my_data.yaml"])
    assert "8 workers" in run(user, [*command, *dataset])


def test_what_is_not_run_here_exists_and_nothing_is_forgotten():
    makefile = (ROOT / "Makefile").read_text()
    for line in COMMANDS:
        program, *arguments = shlex.split(line, comments=True)
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, flags=re.MULTILINE), line
        elif program == "kubectl" and arguments[0] == "apply":
            assert all((ROOT / file).exists() for file in arguments[2::2]), line
        elif program in ("python", "ray"):
            continue
        else:
            assert program in NOT_RUN_HERE, f"no test runs or accounts for: {line}"


def test_the_chinese_one_gives_the_same_commands_and_settings():
    def without_comments(language, text):
        lines = "".join(blocks(language, text)).splitlines()
        return [shlex.split(line, comments=True) for line in lines]

    for language in ("bash", "yaml"):
        assert without_comments(language, CHINESE) == without_comments(language, README)


@pytest.mark.parametrize("text", [README, CHINESE], ids=["English", "Chinese"])
def test_the_files_and_folders_it_links_to_exist(text):
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target


def test_every_yaml_it_shows_is_yaml():
    assert all(isinstance(yaml.safe_load(block), dict) for block in blocks("yaml"))
