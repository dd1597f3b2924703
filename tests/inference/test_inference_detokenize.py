import numpy as np
import pytest

from glm_dist.inference.detokenize import TextStream, TokenTexts

TEXT = "the list 中文 returns – ünïcode 👩‍🚀\n\ttab"


@pytest.fixture(scope="module")
def texts(tokenizer):
    return TokenTexts(tokenizer)


def streamed(texts, tokens, stop=()):
    stream = TextStream(texts, stop)
    pieces = [stream.push(int(token)) for token in tokens]
    return [*pieces, stream.finish()], stream.stopped_by


def test_the_pieces_joined_are_the_text_and_none_splits_a_character(texts, tokenizer):
    pieces, _ = streamed(texts, tokenizer.encode(TEXT))
    assert "".join(pieces) == TEXT
    assert "\ufffd" not in "".join(pieces)
    assert any(piece == "" for piece in pieces[:-1])


def test_any_ids_are_decoded_as_the_tokenizer_decodes_them(texts, tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(300):
        tokens = rng.integers(tokenizer.vocab_size, size=rng.integers(1, 12))
        pieces, _ = streamed(texts, tokens)
        plain = tokens[~np.isin(tokens, tokenizer.special_ids)]
        assert "".join(pieces) == tokenizer.decode(plain) == texts.join(tokens)


def test_ids_without_a_text_add_nothing(texts, tokenizer):
    special = tokenizer.special
    ids = [special.eop, -1, tokenizer.vocab_size, tokenizer.vocab_size + 10**6]
    assert streamed(texts, ids) == (["", "", "", "", ""], None)


@pytest.mark.parametrize("seed", range(40))
def test_a_stop_string_ends_the_text_before_its_first_place_and_never_leaks(texts, tokenizer, seed):
    rng = np.random.default_rng(seed)
    text = "".join(rng.choice(list("ab "), size=60))
    stop = ["".join(rng.choice(list("ab "), size=rng.integers(2, 6))) for _ in range(2)]
    pieces, stopped_by = streamed(texts, tokenizer.encode(text), stop)
    places = {each: text.find(each) for each in stop if each in text}
    assert "".join(pieces) == text[: min(places.values(), default=len(text))]
    assert (stopped_by in places) if places else stopped_by is None
    for count in range(len(pieces)):
        assert text.startswith("".join(pieces[:count]))


def test_text_is_held_back_only_while_it_may_begin_a_stop_string(texts, tokenizer):
    stream = TextStream(texts, ["abab"])
    given = [stream.push(int(token)) for token in tokenizer.encode("xabay")]
    assert "".join(given) == "xabay"
    stream = TextStream(texts, ["abab"])
    given = [stream.push(int(token)) for token in tokenizer.encode("xaba")]
    assert "".join(given) == "x"
    assert stream.finish() == "aba"


def test_the_space_that_stands_before_a_blank_already_is_left_out_once(texts, tokenizer):
    for text, expected in ((" a  b", "a  b"), ("  a", " a"), ("ab", "ab"), (" ", "")):
        stream = TextStream(texts, ["zz"], behind_space=True)
        pieces = [stream.push(int(token)) for token in tokenizer.encode(text)]
        assert "".join([*pieces, stream.finish()]) == expected
