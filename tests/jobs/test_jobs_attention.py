"""The self-attention of a sentence, as a user asks for it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from glm_dist.engine import save_weights
from glm_dist.engine.export import CONFIG
from glm_dist.model import ModelSettings, build_model
from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model of random weights, with two query heads for each key head."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = train_tokenizer(["a list 列表 holds items"] * 50, TokenizerSettings(vocab_size=320))
    settings = ModelSettings(
        preset=None,
        num_layers=2,
        hidden_size=32,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=tokenizer.vocab_size,
    )
    save_weights(folder / "model", dict(build_model(settings).named_parameters()))
    tokenizer.save(folder / "model")
    text = json.dumps({"model": settings.model_dump(mode="json")})
    (folder / "model" / CONFIG).write_text(text)
    return folder


def run(home, *arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "attention.py"), "model=model", *arguments],
        env={**os.environ, "GLM_DIST_HOME": str(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


def test_shapes_are_printed_and_what_part_a_cannot_see_is_grey(home):
    done = run(home, "text=a list [MASK] items", "answer=holds", "layer=2")
    assert done.returncode == 0, done.stdout + done.stderr
    length = len(re.findall(r"^.*? +[AB] +\d+ +\d+$", done.stdout, re.M))
    part_b = len(re.findall(r" B +\d+ +\d+$", done.stdout, re.M))
    assert f"Q            [4, {length}, 8]" in done.stdout
    assert f"K            [2, {length}, 8]" in done.stdout
    picture = (home / "attention" / "layer-2.svg").read_text()
    hidden = 4 * ((length - part_b) * part_b + part_b * (part_b - 1) // 2)
    assert picture.count("#eeeeee") == hidden
    assert picture.count("<rect") == 1 + 4 * length**2


def test_a_text_without_an_answer_sees_itself_whole(home):
    done = run(home, "text=a list", "output=whole")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " B " not in done.stdout
    assert "#eeeeee" not in (home / "whole" / "layer-1.svg").read_text()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["text=a list", "answer=holds"], "text: has no [MASK]"),
        (["text=a list", "layer=3"], "layer: got 3; the model has layers 1 to 2"),
        (["text=" + "a list " * 2000], "the model reads"),
    ],
)
def test_mistakes_are_named(home, given, says):
    done = run(home, *given)
    assert done.returncode == 2
    assert says in done.stderr
