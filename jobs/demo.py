#!/usr/bin/env python3
"""The whole story on one machine: text → dataset → a GLM trained on two workers → answers."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "cluster"))

from local import LocalCluster  # noqa: E402

from glm_dist.config import home  # noqa: E402

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


def main() -> int:
    """Run the steps one after the other; the first that fails ends the demo."""
    python = sys.executable
    with LocalCluster(cpus_per_node=LOGICAL_CPUS) as cluster:
        submit = [python, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", str(ROOT)]
        submit += ["--runtime-env-json", _forwarded_environment(), "--", "python"]
        steps = {
            "1/4  prepare: harvest, clean, tokenizer, shards": [
                *submit,
                "jobs/prepare_data.py",
                "--config=jobs/configs/demo_data.yaml",
            ],
            "2/4  pretrain: two ZeRO-2 workers under Ray Train": [
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
    print("\n== 3/4  generate: completions and filled blanks", flush=True)
    generate = [python, "jobs/generate.py", "--model", "runs/demo", "--max-new-tokens", "24"]
    generate += ["--temperature", "0.7", "--top-p", "0.9"]
    if subprocess.run([*generate, *PROMPTS], cwd=ROOT).returncode:
        return 1
    print("\n== 4/4  serve: OpenAI's endpoints on Ray Serve, and one for blanks", flush=True)
    if serve_and_ask():
        return 1
    print(f"everything lies under {home()}: data/demo, runs/demo (report.md, model/)")
    print(f'more         {python} jobs/generate.py --model runs/demo "Your text with a [MASK]."')
    return 0


def serve_and_ask() -> int:
    """Serve the model, ask one of each kind, and stop."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = ["jobs/serve.py", "model=runs/demo", f"port={port}"]
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
