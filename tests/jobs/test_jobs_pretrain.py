"""The jobs as a user runs them: submitted to a local cluster, two ZeRO-2 workers, then again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "cluster"))

from local import LocalCluster  # noqa: E402

from glm_dist.data.shards import TokenDataset  # noqa: E402
from glm_dist.metrics.sinks import read_metrics  # noqa: E402

pytestmark = pytest.mark.ray
WORDS = "the list returns a number of items when the given value is not in a range".split()
SMALL = [
    "dataset=data/words",
    "duration={num_steps: 12}",
    "batch={global_batch_size: 8, micro_batch_size: 2}",
    "rows.sequence_length=64",
    "model={preset: null, num_layers: 1, hidden_size: 64, num_heads: 2}",
    "engine={zero_stage: 2, dtype: float32}",
    "evaluation={every_steps: 6, num_rows: 8}",
    "checkpoints.every_steps=4",
    "log_every_steps=2",
]


class Place:
    """A home for outputs, and a cluster to submit to."""

    def __init__(self, cluster, home):
        self.cluster, self.home = cluster, home
        self.environment = {**cluster.environment, "GLM_DIST_HOME": str(home)}

    def submit(self, *command, check=True):
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
        submit += ["--working-dir", str(ROOT)]
        forwarded = json.dumps({"env_vars": {"GLM_DIST_HOME": str(self.home)}})
        done = subprocess.run(
            [*submit, "--runtime-env-json", forwarded, "--", *command],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
        )
        if check:
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(rng.choice(WORDS, size=80)) + "."}) for _ in range(400)]
    (home / "words.jsonl").write_text("\n".join(lines))
    config = {
        "output": "data/words",
        "sources": [{"name": "words", "path": str(home / "words.jsonl")}],
        "tokenizer": {"vocab_size": 320},
        "validation_share": 0.1,
    }
    (home / "words.yaml").write_text(json.dumps(config))
    with LocalCluster(cpus_per_node=3) as cluster:
        place = Place(cluster, home)
        place.submit("python", "jobs/prepare_data.py", f"--config={home / 'words.yaml'}")
        place.output = place.submit("python", "jobs/pretrain.py", "name=first", *SMALL).stdout
        yield place


def wandb_records(data):
    """The records of a .wandb file: LevelDB's log format behind seven bytes of header."""
    place, parts = 7, []
    while place + 7 <= len(data):
        left_in_block = 32768 - place % 32768
        if left_in_block < 7:
            place += left_in_block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield b"".join(parts)
            parts = []


def test_two_workers_ran_zero_2_with_half_the_optimizer_bytes_each(place):
    final = json.loads((place.home / "runs/first/final.json").read_text())
    engine = final["engine"]
    assert (engine["backend"], engine["zero_stage"], engine["world_size"]) == ("deepspeed", 2, 2)
    summary = json.loads((place.home / "runs/first/summary.json").read_text())
    whole = 12 * summary["parameters"]
    assert engine["optimizer_bytes"] == pytest.approx(whole / 2, rel=0.05)


def test_the_offline_wandb_run_holds_the_config_and_the_losses_of_the_json_lines(place):
    from wandb.proto import wandb_internal_pb2 as records

    [path] = (place.home / "runs/first/wandb").glob("offline-run-*/*.wandb")
    losses, config = {}, {}
    for data in wandb_records(path.read_bytes()):
        record = records.Record()
        record.ParseFromString(data)
        values = {"".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
        if "loss" in values:
            losses[int(values["_step"])] = json.loads(values["loss"])
        for update in (record.run.config.update, record.config.update):
            config |= {item.key: json.loads(item.value_json) for item in update}
    lines = read_metrics(place.home / "runs/first/metrics.jsonl")
    assert losses == {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert config["rows"]["sequence_length"] == 64
    assert len(losses) == 6


def test_the_output_is_for_people(place):
    for words in ("run folder", "held-out loss", "report", "next", "12/12"):
        assert words in place.output
    for noise in (
        "Traceback",
        "DeprecationWarning",
        "FutureWarning",
        "TrainController",
        "Ray Data",
    ):
        assert noise not in place.output


def test_outputs_lie_below_the_home_and_the_model_generates(place):
    assert TokenDataset.open(place.home / "data/words").num_tokens("train") > 1000
    assert (place.home / "runs/first/report.md").exists()
    command = [sys.executable, "jobs/generate.py", "--model", "runs/first", "the list [MASK] a"]
    done = subprocess.run(
        command, cwd=ROOT, env=place.environment, capture_output=True, text=True, check=True
    )
    assert "the list" in done.stdout


def test_a_finished_run_submitted_again_changes_nothing(place):
    before = (place.home / "runs/first/metrics.jsonl").read_bytes()
    place.submit("jobs/pretrain.py", "name=first", *SMALL)
    losses = [
        [line.get("loss") for line in map(json.loads, data.splitlines()) if "loss" in line]
        for data in (before, (place.home / "runs/first/metrics.jsonl").read_bytes())
    ]
    assert losses[0] == losses[1]


def test_mistakes_end_with_a_sentence_and_without_a_stack_trace(place):
    wrong = place.submit("python", "jobs/pretrain.py", "name=first", *SMALL, "seed=9", check=False)
    assert wrong.returncode != 0
    assert "seed: 1234 there, 9 now" in wrong.stdout + wrong.stderr
    missing = subprocess.run(
        [sys.executable, "jobs/pretrain.py", "dataset=data/nothing", "sched.kind=cosine"],
        cwd=ROOT,
        env={**os.environ, "GLM_DIST_HOME": str(place.home)},
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 2
    assert "sched" in missing.stderr
    assert "Traceback" not in missing.stderr
