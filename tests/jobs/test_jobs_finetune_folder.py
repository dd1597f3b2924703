"""A folder of tables and nothing else: no config, no base, no header, no spaces between words."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_scenarios import SMALL

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ray
TAKEN = ("model", "rows", "batch", "engine", "sinks", "workers", "schedule")
WORDS = {"好": "干净 便宜 热情 好看 舒服".split(), "差": "肮脏 昂贵 冷淡 无聊 吵闹".split()}
FILLER = "这个 房间 的 服务 早餐 电影 价格 我们 觉得 非常".split()


def rows(count, seed):
    rng = random.Random(seed)
    labels = [("好", "差")[number % 2] for number in range(count)]
    return [
        (label, "".join(rng.choices(FILLER, k=5) + rng.choices(WORDS[label], k=3)))
        for label in labels
    ]


def write(folder, split, lines):
    (folder / f"{split}.csv").write_text("".join(f"{a},{b}\n" for a, b in lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "hotels"
    folder.mkdir()
    write(folder, "train", rows(240, 0))
    write(folder, "test", rows(60, 1))
    return folder


def finetune(folder, *arguments):
    settings = [f"{name}={json.dumps(SMALL[name])}" for name in TAKEN]
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs/finetune.py"), f"--data={folder}", *settings, *arguments],
        env={**os.environ, "GLM_DIST_HOME": str(folder.parent)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


def test_a_base_is_made_tuned_scored_and_compared_with_random_weights(folder):
    done = finetune(folder, "--base-minutes=0.02", "epochs=6", "dropout=0")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "no init_from is given, so one is made of the training texts" in done.stdout
    assert f"{folder}/train.csv: text is 1, label is 0" in done.stderr
    assert "needs" not in done.stderr, "its own tokenizer fits"
    assert "validation   24 examples" in done.stdout
    assert "epoch   6.00  loss" in done.stdout
    run = folder.parent / "runs/hotels"
    ours, theirs = (
        json.loads((tuned / "test/scores.json").read_text())["scores"][0]["value"]
        for tuned in (run, run / "from_random_weights")
    )
    gain = f"accuracy {ours:.1f} from the base and {theirs:.1f} from random weights"
    assert f"gain         {gain}: {ours - theirs:+.1f} (" in done.stdout
    assert done.stdout.splitlines()[-1] == f"next         python jobs/serve.py model={run}"


def test_an_unseen_label_and_an_empty_text_are_named_with_file_and_line(folder):
    write(folder, "test", [*rows(58, 1), ("一般", "还可以"), ("好", "")])
    done = finetune(folder, "--base-minutes=0")
    assert done.returncode == 2
    assert (
        f"{folder}/test.csv line 59: the label '一般' is none that training has seen" in done.stderr
    )
    assert f"{folder}/test.csv line 60: the text is empty" in done.stderr
