"""A comparison as a user asks for it: what is wrong is said before anything is trained."""

import json
from pathlib import Path

import pytest
import yaml
from asking import run_job, write_random_model
from finetune_scenarios import SMALL, small_tokenizer, write_folder

from glm_dist.config import load_config
from glm_dist.train.arms import ArmSettings

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs" / "compare"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    for name in ("base", "other"):
        write_random_model(folder / "runs" / name, small_tokenizer(), **SMALL["model"])
    data = write_folder(folder / "data", {"train": 60, "dev": 20, "test": 40})
    task = {split: str(data / f"{split}.csv") for split in ("train", "dev", "test")}
    same = {name: value for name, value in SMALL.items() if name not in ("model", "schedule")}
    same |= {"epochs": 2, "grid": {"learning_rates": [1e-2], "seeds": [3, 4]}}
    task = {"kind": "classification", **task}
    (folder / "task.yaml").write_text(json.dumps({"name": "reviews", "task": task, **same}))
    ways = {"cloze": ["task.method=cloze"], "head": ["task.method=head"]}
    config = {"name": "ways", "title": "Which way?", "tasks": ["task.yaml"], "ways": ways}
    (folder / "ways.yaml").write_text(json.dumps(config))
    return folder


def compare(home, *arguments):
    return run_job(
        home, "compare.py", "--config", str(home / "ways.yaml"), "--docs", str(home / "docs"),
        *arguments,
    )  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_two_ways_are_tuned_scored_and_published(home):
    done = compare(home)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [row] = json.loads((home / "docs" / "ways.json").read_text())["rows"]
    assert set(row["ways"]) == {"cloze", "head"}
    assert len(row["ways"]["cloze"]["seeds"]) == 2
    assert "run          2 of 2: reviews, all, head" in done.stdout
    assert "seed 3" not in compare(home).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ways={a: [task.method], b: []}"], "write key=value"),
        (["ways={a: []}"], "ways"),
        (["tasks=[hotels.yaml]"], "hotels.yaml"),
        (["ways={a: [task.methods=head], b: []}"], "did you mean 'method'"),
        (["ways={a: [], b: [init_from=runs/none]}"], "runs/none"),
    ],
)
def test_a_mistake_is_said_before_anything_starts(home, arguments, message):
    done = compare(home, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "run  " not in done.stdout


@pytest.mark.parametrize("path", sorted(CONFIGS.iterdir()), ids=lambda path: path.name)
def test_the_comparisons_of_the_project_are_settings_of_its_tasks(path, monkeypatch):
    monkeypatch.setenv("DATASETS", "/datasets")
    config = yaml.safe_load(path.read_text())
    for task in config["tasks"]:
        for changes in config.get("sizes", {"all": []}).values():
            for more in config["ways"].values():
                given = [*config.get("settings", []), *changes, *more]
                assert load_config(ArmSettings, path.parent / task, given).task.kind
