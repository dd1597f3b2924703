"""A published model's tokenizer keeps its ids, and no text becomes a role."""

import json
import pickle

import numpy as np
import pytest
from foreign_tokenizer import GLM_4_ROLES, save_tokenizer
from tokenizers import Tokenizer as Library
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from glm_dist.errors import TokenizerError
from glm_dist.tokenizer import PIECES, Tokenizer

TEXTS = ["The quick brown fox jumps. Again!\n", "大學之道，在明明德。", "naïve 🦊  x\t1234567"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("glm-4"), TEXTS)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


@pytest.mark.parametrize("text", [*TEXTS, "", " ", "\n\n", "未見字龘\u200d"])
def test_ids_and_text_are_those_of_transformers(folder, tokenizer, text):
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text)
    assert ids.tolist() == theirs.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.piece_bytes[ids].sum() == len(text.encode())


def test_the_files_roles_keep_their_ids_and_the_others_follow_its_last(folder, tokenizer):
    theirs = Library.from_file(str(folder / "tokenizer.json"))
    special = tokenizer.special
    assert special.gmask == theirs.token_to_id("[gMASK]")
    assert special.sop == theirs.token_to_id("<sop>")
    assert special.user == theirs.token_to_id("<|user|>")
    assert special.pad == special.eos == theirs.token_to_id("<|endoftext|>")
    last = theirs.get_vocab_size() - 1
    assert sorted([special.unk, special.enc, special.dblock, special.sep]) == [
        last + 1,
        last + 2,
        last + 3,
        last + 4,
    ]
    assert tokenizer.vocab_size == last + 5
    assert tokenizer.piece(special.enc) == "[ENC]"
    assert tokenizer.piece(special.eos) == "<|endoftext|>"


@pytest.mark.parametrize("role", [*GLM_4_ROLES, "[ENC]"])
def test_text_never_becomes_a_role(tokenizer, role):
    ids = tokenizer.encode(f"say {role} to me")
    assert not np.isin(ids, tokenizer.special_ids).any()
    assert tokenizer.decode(ids) == f"say {role} to me"


def test_masks_are_tokens_where_asked_for(tokenizer):
    ids = tokenizer.encode_masked("a[MASK] b").tokens
    assert tokenizer.special.mask in ids
    assert tokenizer.decode(ids, keep_special=True) == "a[MASK] b"
    assert tokenizer.decode(ids) == "a b"


def test_sentence_ends_are_known(tokenizer):
    assert tokenizer.sentence_end[tokenizer.encode("jumps.")].any()
    assert not tokenizer.sentence_end[tokenizer.encode("jumps")].any()


def test_it_travels_and_is_saved_as_it_came(folder, tokenizer, tmp_path):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(TEXTS[0]).tolist() == tokenizer.encode(TEXTS[0]).tolist()
    path = tokenizer.save(tmp_path)
    assert path.read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert Tokenizer.load(tmp_path).sha256 == tokenizer.sha256


@pytest.mark.parametrize("content", ["nonsense", "{}", '{"added_tokens": []}'])
def test_what_is_no_tokenizer_is_refused_by_name(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: is no tokenizer"):
        Tokenizer.load(tmp_path)


def test_roles_that_are_pieces_of_the_vocabulary_are_refused(tmp_path):
    library = Library(models.WordLevel({"[MASK]": 0, "a": 1}, unk_token="a"))
    document = json.loads(library.to_str())
    document["added_tokens"] = [
        {"id": 0, "content": "[MASK]", "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
    ]  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(TokenizerError, match=r"text that says \[MASK\]"):
        Tokenizer.load(tmp_path)


def test_our_names_of_roles_are_all_known():
    from glm_dist.tokenizer.huggingface import NAMES

    assert NAMES.keys() == PIECES.keys()
