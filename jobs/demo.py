#!/usr/bin/env python3
"""The whole story on one machine: text → dataset → a GLM trained on two workers → answers.

With KILL=1 in the environment a worker is killed on the way, and the run goes on by itself.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "cluster"))

from local import LocalCluster  # noqa: E402

from glm_dist.config import home, output_path  # noqa: E402

RUN = "runs/demo"
KILL_STEP = 300  # past the first checkpoint of demo.yaml, and well before the end
LOGICAL_CPUS = 3  # two workers and one for the tasks that build rows
CHATTER = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+\s+(INFO|SUCC|WARNING) |Running entrypoint for job")
QUESTIONS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Return a new array with", "max_tokens": 12, "temperature": 0.7},
    "/v1/infill": {
        "input": "Return the [MASK] of the given [MASK].",
        "max_tokens": 6,
        "temperature": 0.7,
    },
    "/v1/classify": {
        "input": "Return the sum of all elements of the array.",
        "template": "{input} This text is about [MASK].",
        "labels": ["numbers", "files"],
    },
}
PROMPTS = [
    "Return a new array with",
    "If the value is not found, an exception is",
    "The default value of this [MASK] is None.",
    "Return the [MASK] of the given [MASK].",
]


class Killer(threading.Thread):
    """Kills one of the workers past a step, by the process id that it wrote into the run folder."""

    def __init__(self, run_folder: Path, step: int) -> None:
        """Args: of the run, which may not exist yet; after how many steps."""
        super().__init__(daemon=True)
        self._run_folder, self._step = run_folder, step
        self.ended = threading.Event()

    def run(self) -> None:
        """Wait for the step, and kill once."""
        while not self.ended.wait(0.5):
            if self._steps_done() >= self._step:
                sign = json.loads(max(self._run_folder.glob("signs/rank-*.json")).read_text())
                os.kill(sign["pid"], signal.SIGKILL)
                print(f"killed       rank {sign['rank']}, process {sign['pid']}", flush=True)
                return

    def _steps_done(self) -> int:
        """Steps of the last whole line of metrics."""
        try:
            lines = (self._run_folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        except OSError:
            return 0
        return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def main() -> int:
    """Run the steps one after the other; the first that fails ends the demo."""
    python, run_folder = sys.executable, output_path(RUN)
    killer = None
    if os.environ.get("KILL", "0") != "0":
        if run_folder.exists():
            print(f"KILL: {run_folder} holds a run already; move it away first", file=sys.stderr)
            return 2
        killer = Killer(run_folder, KILL_STEP)
        killer.start()
    with LocalCluster(cpus_per_node=LOGICAL_CPUS) as cluster:
        submit = [python, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", str(ROOT)]
        submit += ["--runtime-env-json", _forwarded_environment(), "--", "python"]
        steps = {
            "1/5  prepare: harvest, clean, tokenizer, shards": [
                *submit,
                "jobs/prepare_data.py",
                "--config=jobs/configs/demo_data.yaml",
            ],
            "2/5  pretrain: two ZeRO-2 workers under Ray Train": [
                *submit,
                "jobs/pretrain.py",
                "--config=jobs/configs/demo.yaml",
            ],
        }
        for title, command in steps.items():
            print(f"\n== {title}")
            print(f"$ ray job submit --working-dir . -- {' '.join(command[len(submit) - 1 :])}\n")
            if run_quietly(command, cluster.environment):
                print("the demo ends here: the step above failed", file=sys.stderr)
                return 1
    if killer:
        killer.ended.set()
        show_attempts(run_folder)
    print("\n== 3/5  generate: completions and filled blanks", flush=True)
    generate = [python, "jobs/generate.py", "--model", RUN, "--max-new-tokens", "24"]
    generate += ["--temperature", "0.7", "--top-p", "0.9"]
    if subprocess.run([*generate, *PROMPTS], cwd=ROOT).returncode:
        return 1
    print("\n== 4/5  export: a folder that transformers opens", flush=True)
    export = ["jobs/export.py", "--model", RUN, "--output", "exports/demo"]
    print(f"$ python {' '.join(export)}", flush=True)
    if subprocess.run([python, *export], cwd=ROOT).returncode:
        return 1
    print("\n== 5/5  serve: OpenAI's endpoints on Ray Serve, and one for blanks", flush=True)
    if serve_and_ask():
        return 1
    print(f"everything lies under {home()}: data/demo, {RUN} (report.md, model/), exports/demo")
    print(f'more         {python} jobs/generate.py --model {RUN} "Your text with a [MASK]."')
    return 0


def show_attempts(run_folder: Path) -> None:
    """Where each launch of the workers began, and where the curve lies."""
    from glm_dist.train.attempt import read_attempts

    print()
    for attempt in read_attempts(run_folder):
        print(f"launch {attempt.number}     from step {attempt.train_state.step}")
    print(f"curve        {run_folder / 'loss.png'}", flush=True)


def serve_and_ask() -> int:
    """Serve the model, ask one of each kind, and stop."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = ["jobs/serve.py", f"model={RUN}", f"port={port}"]
    print(f"$ python {' '.join(command)}")
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        for line in server.stdout or []:
            if line.startswith("serving"):
                print(line, end="")
                break
        else:
            return 1
        for path, body in QUESTIONS.items():
            url = f"http://127.0.0.1:{port}{path}"
            content = json.dumps(body)
            print(f"\n$ curl {url} -H 'content-type: application/json' -d '{content}'")
            request = Request(url, content.encode(), {"content-type": "application/json"})
            with urlopen(request) as reply:
                print(reply.read().decode(), flush=True)
        server.terminate()
        return server.wait()


def run_quietly(command: list[str], environment: dict[str, str]) -> int:
    """Run a submission and show what the job prints, without what Ray logs about it."""
    with subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout or []:
            if not CHATTER.match(line):
                print(line, end="", flush=True)
    return process.returncode


def _forwarded_environment() -> str:
    """The runtime environment of the jobs: where outputs go."""
    return json.dumps({"env_vars": {"GLM_DIST_HOME": str(home())}})


if __name__ == "__main__":
    sys.exit(main())
