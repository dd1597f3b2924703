"""Every baseline learns what it can, the same every time, and says what it is."""

import random

import numpy as np
import pytest
import torch

from glm_dist.errors import DataError
from glm_dist.tasks.baselines.extractive import (
    lead,
    overlap_answer,
    split_sentences,
)
from glm_dist.tasks.baselines.lstm import (
    LstmClassifier,
    LstmSettings,
    LstmTagger,
    bucketed_batches,
)
from glm_dist.tasks.baselines.majority import MajorityClassifier, MajorityTagger
from glm_dist.tasks.baselines.tfidf import TfidfClassifier, TfidfRanker, TfidfSettings
from glm_dist.tasks.baselines.vocabulary import UNKNOWN, Vocabulary

SMALL = LstmSettings(
    embedding_size=16, hidden_size=16, dropout=0.1, batch_size=32, learning_rate=0.02, num_epochs=6
)
GOOD, BAD, OTHER = "喜欢棒美", "差坏糟烂", "的了是我你他在有这那很也"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reviews(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Chinese without spaces, in which one of a few characters decides."""
    rng = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        label = rng.choice(["negative", "positive"])
        characters = rng.choices(OTHER, k=rng.randint(5, 15))
        characters.insert(rng.randint(0, 4), rng.choice(GOOD if label == "positive" else BAD))
        texts.append("".join(characters))
        labels.append(label)
    return texts, labels


def switches(count: int, seed: int) -> tuple[list[str], list[str]]:
    """The order decides: which of two words comes last. No bag of words can tell."""
    rng = random.Random(seed)
    pairs = [rng.choice([("on", "off"), ("off", "on")]) for _ in range(count)]
    return [f"turn it {a} and then {b}" for a, b in pairs], [b for _, b in pairs]


@pytest.mark.parametrize("classifier", ["tfidf", "lstm"])
def test_a_classifier_learns_a_rule_of_characters(classifier):
    texts, labels = reviews(250, 1)
    unseen, right = reviews(100, 2)
    if classifier == "tfidf":
        model = TfidfClassifier(texts, labels)
    else:
        model = LstmClassifier(texts, labels, SMALL)
        losses = list(model.train(texts, labels))
        assert losses[-1] < losses[0] / 3
    assert np.mean(np.array(model.predict(unseen)) == right) > 0.95
    probabilities = model.predict_proba(unseen)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(100), abs=1e-5)
    assert [model.labels[i] for i in probabilities.argmax(axis=1)] == model.predict(unseen)


def test_only_the_lstm_learns_order():
    texts, labels = switches(200, 1)
    unseen, right = switches(100, 2)
    model = LstmClassifier(texts, labels, SMALL)
    list(model.train(texts, labels))
    assert model.predict(unseen) == right
    words = TfidfSettings(max_word_ngram=1, max_character_ngram=1)
    bag = TfidfClassifier(texts, labels, words)
    assert len(set(bag.predict(unseen))) == 1


def test_the_same_seed_gives_the_same_bits_and_leaves_the_callers_stream_alone():
    texts, labels = reviews(120, 3)

    def trained(seed: int) -> np.ndarray:
        model = LstmClassifier(texts, labels, SMALL.model_copy(update={"seed": seed}))
        list(zip(range(2), model.train(texts, labels), strict=False))
        return model.predict_proba(texts)

    torch.manual_seed(5)
    first = trained(7)
    after = torch.rand(1)
    torch.manual_seed(6)
    assert np.array_equal(first, trained(7))
    assert not np.array_equal(first, trained(8))
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_predictions_do_not_depend_on_their_neighbours():
    texts, labels = reviews(50, 4)
    model = LstmClassifier(texts, labels, SMALL)
    alone = np.concatenate([model.predict_proba([text]) for text in ["", *texts[:5]]])
    together = model.predict_proba(["", *texts[:5]])
    assert alone == pytest.approx(together, abs=1e-6)


def test_padded_directions_compute_what_the_packed_bidirectional_lstm_does():
    texts, labels = reviews(40, 5)
    model = LstmClassifier(texts, labels, SMALL.model_copy(update={"dropout": 0.0})).model
    packing = torch.nn.LSTM(16, 16, 2, batch_first=True, bidirectional=True)
    for number, layer in enumerate(model.layers):
        for ours, suffix in ((layer.ahead, ""), (layer.behind, "_reverse")):
            for name, weight in ours.named_parameters():
                getattr(packing, name.replace("_l0", f"_l{number}{suffix}")).data.copy_(weight)
    lengths = torch.tensor([9, 1, 5, 7])
    tokens = torch.randint(2, 20, (4, 9))
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        model.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
    )
    states, (last, _) = packing(packed)
    states, _ = torch.nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
    of_texts, of_tokens = model(tokens, lengths)
    is_text = torch.arange(9) < lengths[:, None]
    torch.testing.assert_close(of_texts, model.output(torch.cat((last[-2], last[-1]), dim=1)))
    torch.testing.assert_close(of_tokens[is_text], model.output(states)[is_text])


def test_taggers_learn_what_a_token_and_what_its_neighbours_say():
    rng = random.Random(0)
    sentences, tags = [], []
    for _ in range(200):
        name = rng.choice(["王", "李", "张"])
        title = rng.choice(["先生", "老师"])
        text = f"{name}{rng.choice('明伟芳')}{title}来自王府"
        sentences.append(list(text))
        tags.append(["B-PER", "E-PER", *"OOOO", "B-LOC", "E-LOC"])
    majority = MajorityTagger(sentences, tags)
    assert majority.predict([list("李明?")]) == [["B-PER", "E-PER", "O"]]
    # 王 begins a name as often as not; only its neighbours tell.
    model = LstmTagger(sentences, tags, SMALL)
    list(model.train(sentences, tags))
    assert model.predict([list("王伟先生来自王府"), []]) == [tags[0], []]
    short = LstmTagger(sentences, tags, SMALL.model_copy(update={"max_tokens": 3}))
    assert [len(one) for one in short.predict([list("王伟先生来自王府")])] == [8]


def test_batches_hold_texts_of_one_length_and_each_once():
    lengths = np.random.default_rng(0).integers(1, 100, size=1000)
    batches = bucketed_batches(lengths, 16, seed=1)
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    assert max(np.ptp(lengths[batch]) for batch in batches) <= 5
    assert batches != bucketed_batches(lengths, 16, seed=2)
    first = [lengths[batch].mean() for batch in batches]
    assert first != sorted(first)


def test_vectors_are_read_for_known_words_alone(tmp_path):
    words = Vocabulary([["the", "cat", "the", "a"]], size=2)
    assert words.words == ["the", "a"]  # of equally frequent words the first in the alphabet
    assert words.encode(["the", "cat"]) == [2, UNKNOWN]
    assert words.encode([]) == [UNKNOWN]
    file = tmp_path / "vectors.txt"
    file.write_text("3 2\nthe 0.5 1\n. . 1 2\ncat 7 7\n")
    vectors, found = words.read_vectors(file, 2)
    assert found == 1
    assert vectors.tolist() == [[0, 0], [0, 0], [0.5, 1], [0, 0]]
    settings = SMALL.model_copy(update={"vectors": str(file), "embedding_size": 2})
    weight = LstmClassifier(["the cat"], ["x"], settings).model.embedding.weight
    assert weight.tolist() == [[0, 0], [0, 0], [7, 7], [0.5, 1]]
    file.write_text("the 0.5 1\na 1\n")
    with pytest.raises(DataError, match=r"line 2 has 1 values, embedding_size is 2"):
        words.read_vectors(file, 2)


def test_majority_gives_the_shares_of_the_training_split():
    model = MajorityClassifier(["b", "a", "b"], ["a", "b"])
    assert model.predict(["x", "y"]) == ["b", "b"]
    assert model.predict_proba(["x"])[0] == pytest.approx([1 / 3, 2 / 3])
    assert "66.7%" in model.describe()


def test_the_ranker_prefers_the_reply_that_shares_rare_words():
    said = ["故宫的门票多少钱", "故宫门票60元", "你好", "好的，谢谢", "附近的酒店有哪些"]
    ranker = TfidfRanker(said)
    scores = ranker.scores("故宫的门票多少钱", ["好的，谢谢", "故宫门票60元", ""])
    assert scores.argmax() == 1
    assert scores[2] == 0


def test_texts_are_cut_into_sentences_in_both_languages():
    assert split_sentences("It cost 3.5 dollars. Why? 好。很好！对") == [
        "It cost 3.5 dollars.",
        "Why?",
        "好。",
        "很好！",
        "对",
    ]
    assert lead("A: Hi.\nB: Hello. How are you?\n", 2) == "A: Hi. B: Hello."
    assert lead("", 3) == ""


def test_the_overlap_answer_is_the_clause_beside_the_questions_words():
    context = "李白是唐代诗人。杜甫生于公元712年，字子美。苏轼是宋代文学家。"
    assert overlap_answer("杜甫的字是什么？", context) in ("杜甫生于公元712年", "字子美")
    assert overlap_answer("anything", "") == ""


def test_each_says_what_it_is():
    texts, labels = reviews(40, 5)
    lines = TfidfClassifier(texts, labels).describe().splitlines()
    assert len(lines) == 3
    assert "positive:" in lines[2]
    assert "2 layers of 16" in LstmClassifier(texts, labels, SMALL).describe()
