"""Which column is which field, and what is said of examples that cannot be used."""

import json
import logging

import pytest

from glm_dist.errors import DataError
from glm_dist.tasks.classification import ClassificationSettings
from glm_dist.tasks.dialogue import DialogueSettings, Turn, read_turns
from glm_dist.tasks.examples import cut, read_examples, take
from glm_dist.tasks.question_answering import QuestionAnsweringSettings
from glm_dist.tasks.summarisation import SummarisationSettings
from glm_dist.tasks.translation import TranslationSettings

TABLE = [("a fine film", "good"), ("dull and long", "bad"), ("一部好电影", "good"), ("no", "bad")]


def write(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def classify(path, **settings):
    examples = read_examples(ClassificationSettings(train=path, **settings), "train")
    return [(example.text("text"), example.text("label")) for example in examples]


@pytest.mark.parametrize(
    ("header", "columns", "order"),
    [
        ("text,label", {}, (0, 1)),
        ("Sentiment,Review", {}, (1, 0)),
        ("标签,内容", {}, (1, 0)),
        ("a,b", {"text": "a", "label": "b"}, (0, 1)),
        ("a,b", {"text": 1, "label": 0}, (1, 0)),
        (None, {}, (0, 1)),
        (None, {}, (1, 0)),
        (None, {"text": 1, "label": 0}, (1, 0)),
    ],
)
def test_columns_are_found_by_usual_names_by_settings_or_by_content(
    tmp_path, header, columns, order
):
    lines = [",".join(row[place] for place in order) for row in TABLE]
    path = write(tmp_path, "train.csv", "\n".join([header, *lines] if header else lines) + "\n")
    assert classify(path, columns=columns) == TABLE


def test_what_was_found_is_told(tmp_path, caplog):
    path = write(tmp_path, "train.csv", "sentence,stars\nx,1\ny,2\n")
    with caplog.at_level(logging.INFO, logger="glm_dist"):
        classify(path)
    assert "text is 'sentence', label is 'stars'" in caplog.text


def test_a_wrong_column_is_named_with_those_that_are_there(tmp_path):
    path = write(tmp_path, "train.csv", "a,b\nx,1\n")
    with pytest.raises(
        DataError, match=r"text is 'A', and .*train\.csv has no such column(?s:.*)a, b"
    ):
        classify(path, columns={"text": "A", "label": "b"})
    with pytest.raises(ValueError, match="txt is no field of classification; it has text, label"):
        ClassificationSettings(train=path, columns={"txt": "a"})


def test_several_columns_are_one_text_or_all_right_answers(tmp_path):
    path = write(tmp_path, "a.csv", "3,Title,More\n4,Other,Words\n")
    found = classify(path, columns={"label": 0, "text": [1, 2]}, header=False)
    assert found == [("Title More", "3"), ("Other Words", "4")]
    records = [{"dialogue": "d", "summary1": "one", "summary2": "two"}]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, records)))
    columns = {"source": "dialogue", "target": ["summary", "summary1", "summary2"]}
    (example,) = read_examples(SummarisationSettings(test=path, columns=columns), "test")
    assert example.fields["target"] == ["one", "two"]


def test_aligned_files_and_squad_are_read_by_the_names_of_their_fields(tmp_path):
    files = {
        "source": write(tmp_path, "a.en", "one\n"),
        "target": write(tmp_path, "a.de", "eins\n"),
    }
    (pair,) = read_examples(TranslationSettings(train=files), "train")
    assert (pair.text("source"), pair.text("target")) == ("one", "eins")
    question = {"question": "Who?", "answers": [{"text": "Ada"}]}
    article = {"paragraphs": [{"context": "It was Ada.", "qas": [question]}]}
    path = write(tmp_path, "s.json", json.dumps({"data": [article]}))
    (asked,) = read_examples(QuestionAnsweringSettings(train=path), "train")
    assert asked.fields["answers"] == ["Ada"]


TURNS = [Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Hello!")]


@pytest.mark.parametrize(
    ("key", "messages"),
    [
        ("messages", [{"role": turn.role, "content": turn.text} for turn in TURNS]),
        (
            "conversations",
            [
                {"from": name, "value": turn.text}
                for name, turn in zip(("system", "human", "gpt"), TURNS, strict=True)
            ],
        ),
    ],
)
def test_openai_and_sharegpt_chats_are_the_same_turns(tmp_path, key, messages):
    path = write(tmp_path, "a.jsonl", json.dumps({key: messages}))
    (example,) = read_examples(DialogueSettings(train=path), "train")
    assert read_turns(example.fields["messages"]) == TURNS


def test_texts_alone_are_said_by_turns_and_a_strange_role_is_named():
    assert read_turns(["Hi", "Hello!"]) == TURNS[1:]
    with pytest.raises(ValueError, match="message 0 has the role 'narrator'; known are"):
        read_turns([{"role": "narrator", "content": "x"}])
    with pytest.raises(ValueError, match="message 1 has no role and content"):
        read_turns([{"role": "user", "content": "x"}, {"who": "y"}])


def test_a_part_is_cut_by_the_seed_and_repeated_texts_stay_together(tmp_path):
    lines = [f"text {number % 40},{number}" for number in range(80)]
    settings = ClassificationSettings(
        train=write(tmp_path, "a.csv", "text,label\n" + "\n".join(lines) + "\n")
    )
    examples = read_examples(settings, "train")
    kept, held_out = cut(examples, 0.25, ["text"], "dev", seed=3)
    assert len(held_out) == 20
    assert not {one.text("text") for one in kept} & {one.text("text") for one in held_out}
    assert sorted(map(str, kept + held_out)) == sorted(map(str, examples))
    assert cut(examples, 0.25, ["text"], "dev", seed=3) == (kept, held_out)
    assert cut(examples, 0.25, ["text"], "dev", seed=4)[1] != held_out
    with pytest.raises(DataError, match=r"too few to cut a dev part from.*task\.dev"):
        cut(examples[:1], 0.25, ["text"], "dev", seed=3)


def test_pairs_that_share_a_sentence_of_either_language_stay_together(tmp_path):
    pairs = [("Hi", "你好"), ("Hello", "你好"), ("Hello", "您好"), ("Bye", "再见"), ("Yes", "是")]
    path = write(tmp_path, "a.jsonl", "\n".join(json.dumps(pair) for pair in pairs))
    settings = TranslationSettings(train=path, columns={"source": 0, "target": 1})
    examples = read_examples(settings, "train")
    for seed in range(10):
        parts = cut(examples, 0.5, settings.kept_together, "test", seed)
        texts = [{text for one in part for text in one.fields.values()} for part in parts]
        assert not texts[0] & texts[1]
        assert sum(map(len, parts)) == len(pairs)


def test_so_many_are_taken_by_a_seed(tmp_path):
    lines = [f"text {number},{number}" for number in range(80)]
    settings = ClassificationSettings(
        train=write(tmp_path, "a.csv", "text,label\n" + "\n".join(lines) + "\n")
    )
    examples = read_examples(settings, "train")
    assert take(examples, 10, 1) == take(examples, 10, 1)
    assert take(examples, 10, 1) != take(examples, 10, 2)


@pytest.mark.parametrize(
    ("value", "language"),
    [("a film", "en"), ("一部电影", "zh"), (["中", "国"], "zh"), ([{"content": "你好"}], "zh")],
)
def test_the_language_is_guessed_from_texts_tokens_and_messages(value, language):
    from glm_dist.tasks.examples import Example

    assert Example({"text": value}, "").language == language
