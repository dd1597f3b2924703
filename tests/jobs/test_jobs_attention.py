"""The self-attention of a sentence, as a user asks for it."""

import re

import pytest
from asking import run_job, write_random_model

from glm_dist.tokenizer import TokenizerSettings, train_tokenizer


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model of random weights, with two query heads for each key head."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = train_tokenizer(["a list 列表 holds items"] * 50, TokenizerSettings(vocab_size=320))
    write_random_model(folder / "model", tokenizer, num_layers=2, num_heads=4, num_kv_heads=2)
    return folder


def run(home, *arguments):
    return run_job(home, "attention.py", "model=model", *arguments)


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
