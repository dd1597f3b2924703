import numpy as np
import pytest
import sentencepiece

from glm_dist.errors import TokenizerError
from glm_dist.tokenizer import PIECES, Tokenizer, TokenizerSettings, train_tokenizer
from glm_dist.tokenizer import sentence_piece as module

TEXT = [
    "def f(x):\n    return x + 1  # the sum",
    "The quick brown fox jumps over the lazy dog. Again and again!",
    "大學之道，在明明德，在親民，在止於至善。知止而后有定。",
] * 40


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request):
    return train_tokenizer(TEXT, TokenizerSettings(vocab_size=420, model_type=request.param))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n  \t x",
        "a  b\n",
        "emoji 🦊 and \u00e9",
        "未見字龘",
        "[MASK] <eop> <pad> <unk>",
    ],
)
def test_text_survives_and_never_becomes_a_special_token(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert not np.isin(tokens, tokenizer.special_ids).any()


def test_masks_are_tokens_only_where_asked_for(tokenizer):
    tokens = tokenizer.encode_masked("a[MASK] b[gMASK]").tokens
    special = tokenizer.special
    assert [token for token in tokens if token in tokenizer.special_ids] == [
        special.mask,
        special.gmask,
    ]
    assert tokenizer.decode(tokens, keep_special=True) == "a[MASK] b[gMASK]"
    assert tokenizer.decode(tokens) == "a b"


def test_a_space_before_a_mask_belongs_to_what_fills_it(tokenizer):
    text = "It was [MASK]. And[MASK], [gMASK]"
    masked = tokenizer.encode_masked(text)
    assert masked.behind_space == (True, False, True)
    shown = tokenizer.decode(masked.tokens, keep_special=True)
    assert shown == "It was[MASK]. And[MASK],[gMASK]"
    special = tokenizer.special
    assert masked.tokens[masked.places].tolist() == [special.mask, special.mask, special.gmask]
    # Context and answer are the pieces of the whole sentence, as pretraining cuts them.
    filled = tokenizer.encode_answer("great", behind_space=True)
    assert [*masked.tokens[: masked.places[0]], *filled] == tokenizer.encode(
        "It was great"
    ).tolist()


def test_roles_have_distinct_ids_and_bytes_add_up(tokenizer):
    assert len(set(tokenizer.special_ids.tolist())) == len(PIECES)
    for text in TEXT[:3]:
        assert tokenizer.piece_bytes[tokenizer.encode(text)].sum() == len(text.encode())


def test_sentence_ends_are_known(tokenizer):
    ends = tokenizer.sentence_end[tokenizer.encode("至善。")]
    assert ends.tolist()[-1]
    assert not tokenizer.sentence_end[tokenizer.special_ids].any()


def test_training_again_gives_the_same_bytes_and_plain_sentencepiece_opens_them(
    tokenizer, tmp_path
):
    settings = TokenizerSettings(vocab_size=420)
    assert train_tokenizer(TEXT, settings).sha256 == train_tokenizer(TEXT, settings).sha256
    tokenizer.save(tmp_path)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert plain.encode(TEXT[1]) == tokenizer.encode(TEXT[1]).tolist()
    assert Tokenizer.load(tmp_path).sha256 == tokenizer.sha256


def test_a_missing_or_foreign_model_is_refused_by_name(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        Tokenizer.load(tmp_path)


def test_counts_are_scaled_down_together_and_small_texts_are_not_touched(monkeypatch):
    texts = ["often often often rare"] * 1000 + [f"once{number}" for number in range(1000)]
    lines = dict(line.split("\t") for line in module._counted_words(texts))
    assert lines[" often"] == "2000"
    assert len(lines) == 1003
    characters = sum(len(word) * int(count) for word, count in lines.items())
    monkeypatch.setattr(module, "MAX_TRAINED_CHARACTERS", characters // 10)
    scaled = dict(line.split("\t") for line in module._counted_words(texts))
    assert int(scaled[" often"]) in (200, 201)
    assert sum(word.startswith("once") for word in scaled) == pytest.approx(100, abs=40)
    kept = sum(len(word) * int(count) for word, count in scaled.items())
    assert kept == pytest.approx(characters / 10, rel=0.1)
