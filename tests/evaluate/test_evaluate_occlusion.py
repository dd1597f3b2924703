"""Words of a text, and how far a score falls without each."""

import numpy as np
import pytest
from finetune_scenarios import small_tokenizer

from glm_dist.evaluate.occlusion import MOST_PARTS, falls, log_odds, parts_of, without
from glm_dist.tasks import Question, Reply


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def part_a(tokenizer, text):
    special = tokenizer.special
    return np.array([special.enc, *tokenizer.encode(text), special.mask], dtype=np.int32)


def test_words_and_characters_are_parts_and_masks_are_none(tokenizer):
    tokens = part_a(tokenizer, "the naïve man, 好的 42🙂")
    parts = parts_of(tokens, tokenizer)
    texts = [part.text.strip() for part in parts]
    assert [text for text in texts if text] == ["the", "naïve", "man", ",", "好", "的", "42", "🙂"]
    places = [place for part in parts for place in part.places]
    assert places == list(range(1, len(tokens) - 1))


def test_a_long_text_has_few_parts_that_hold_all_of_it(tokenizer):
    text = " ".join(f"word{number}" for number in range(300))
    parts = parts_of(part_a(tokenizer, text), tokenizer)
    assert 1 < len(parts) <= MOST_PARTS
    assert "".join(part.text for part in parts).strip() == text


def test_a_text_of_nothing_has_no_parts(tokenizer):
    assert parts_of(part_a(tokenizer, ""), tokenizer) == []


def test_a_part_is_masked_and_the_rest_stays(tokenizer):
    tokens = part_a(tokenizer, "the old man")
    question = Question(tokens, (len(tokens) - 1,))
    mask = tokenizer.special.mask
    part = parts_of(tokens, tokenizer)[1]
    masked = without(question, part, mask)
    assert masked.places == question.places
    assert (masked.tokens[part.places] == mask).all()
    rest = np.setdiff1d(np.arange(len(tokens)), part.places)
    assert (masked.tokens[rest] == tokens[rest]).all()
    assert (question.tokens == part_a(tokenizer, "the old man")).all()


def test_falls_are_differences_of_log_odds():
    replies = [Reply(scores=np.log([shares])) for shares in ([0.8, 0.1, 0.1], [0.5, 0.25, 0.25])]
    assert log_odds(replies[0], 0) == pytest.approx(np.log(4))
    assert falls(replies[0], [replies[1], replies[0]], 0) == pytest.approx([np.log(4), 0])
