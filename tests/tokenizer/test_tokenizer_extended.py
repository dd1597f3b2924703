"""A tokenizer that learns another language keeps what it knows."""

import pytest

from glm_dist.errors import TokenizerError
from glm_dist.model.initial import check_vocabulary
from glm_dist.tokenizer import Tokenizer, TokenizerSettings, extend_tokenizer, train_tokenizer

ENGLISH = ["The list returns its items in order, and the range is a list of items.\n"] * 60
CHINESE = ["清单按次序给出其中的条目，范围是条目的清单。\n", "次序是清单的范围。"] * 60


@pytest.fixture(scope="module")
def known():
    return train_tokenizer(ENGLISH, TokenizerSettings(vocab_size=330))


@pytest.fixture(scope="module")
def extended(known):
    return extend_tokenizer(known, CHINESE, TokenizerSettings(vocab_size=known.vocab_size + 40))


def test_old_ids_mean_what_they_meant_and_old_text_is_cut_as_before(known, extended):
    assert known.vocab_size < extended.vocab_size <= known.vocab_size + 40
    pieces = [[one.piece(token) for token in range(known.vocab_size)] for one in (known, extended)]
    check_vocabulary(*pieces)
    assert pieces[0] == pieces[1]
    assert extended.special == known.special
    for text in (ENGLISH[0], "a range of lists"):
        assert extended.encode(text).tolist() == known.encode(text).tolist()


def test_new_text_takes_new_pieces_and_survives(known, extended):
    text = "清单的次序，and its items."
    assert extended.decode(extended.encode(text)) == text
    assert len(extended.encode(text)) < len(known.encode(text)) / 2
    assert extended.encode(text).max() >= known.vocab_size
    again = Tokenizer(extended.serialized)
    assert again.encode(text).tolist() == extended.encode(text).tolist()


def test_it_is_made_alike_again_and_leaves_as_a_published_file(known, extended):
    settings = TokenizerSettings(vocab_size=known.vocab_size + 40)
    assert extend_tokenizer(known, CHINESE, settings).sha256 == extended.sha256
    vocabulary = extended.to_huggingface()["tokenizer.json"]["model"]["vocab"]
    assert len(vocabulary) == extended.vocab_size


def test_what_cannot_be_extended_is_refused_by_the_reason(known):
    with pytest.raises(TokenizerError, match=rf"has {known.vocab_size} pieces already"):
        extend_tokenizer(known, CHINESE, TokenizerSettings(vocab_size=known.vocab_size))
    bpe = train_tokenizer(ENGLISH, TokenizerSettings(vocab_size=330, model_type="bpe"))
    with pytest.raises(TokenizerError, match="only unigram"):
        extend_tokenizer(bpe, CHINESE, TokenizerSettings(vocab_size=500))
