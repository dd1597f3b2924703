"""Whether a base's tokenizer fits the texts that a task is learnt from."""

import random

from finetune_scenarios import reviews, small_tokenizer

from glm_dist.tasks.examples import Example
from glm_dist.train.base import check_tokenizer, texts_of

BASE = "runs/films"


def examples(texts):
    return [Example({"text": text, "label": "x"}, "here") for text in texts]


def chinese(count):
    rng = random.Random(0)
    words = "这部 电影 非常 好看 房间 干净 服务 态度 不错 价格 便宜 早餐 丰富".split()
    return ["".join(rng.choices(words, k=20)) for _ in range(count)]


def test_a_base_that_never_read_such_text_is_named_with_what_it_costs(caplog):
    check_tokenizer(BASE, small_tokenizer(), examples(chinese(800)))
    assert "init_from: the tokenizer of runs/films needs" in caplog.text
    times = float(caplog.text.partition("needs ")[2].partition(" times")[0])
    assert times > 3


def test_a_base_that_read_such_text_is_not_warned_about(caplog):
    check_tokenizer(BASE, small_tokenizer(), examples(text for text, _ in reviews(2000, 3)))
    assert not caplog.text


def test_a_few_texts_are_nothing_to_judge_a_tokenizer_by(caplog):
    check_tokenizer(BASE, small_tokenizer(), examples(chinese(20)))
    assert not caplog.text


def test_texts_of_many_different_characters_are_judged_too(caplog):
    rng = random.Random(0)
    characters = [chr(0x4E00 + number) for number in range(3000)]
    texts = ["".join(rng.choices(characters, k=20)) for _ in range(1200)]
    check_tokenizer(BASE, small_tokenizer(), examples(texts))
    assert "init_from: the tokenizer of runs/films needs" in caplog.text


def test_what_is_no_running_text_is_left_out_of_a_base():
    fields = {"task": "mood", "text": "warm and kind", "label": "1", "tags": ["O", "B"]}
    assert texts_of(Example(fields, "here")) == ["warm and kind"]
