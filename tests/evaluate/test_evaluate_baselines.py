"""Arms beside a tuned model: fitted on train, chosen on dev, asked about the test split once."""

import random

import pytest

from glm_dist.errors import ConfigError
from glm_dist.evaluate.baselines import BaselineSettings, answer_by, arms_of
from glm_dist.evaluate.task_report import score_answers
from glm_dist.tasks import TASKS, Answer, build_task
from glm_dist.tasks.baselines.lstm import LstmSettings
from glm_dist.tasks.examples import Example

SMALL = BaselineSettings(
    lstm=LstmSettings(embedding_size=16, hidden_size=16, dropout=0.1, batch_size=32, num_epochs=5),
    lstm_learning_rates=[1e-5, 0.02],
)


def splits_of(make, train, dev, test):
    """Examples of three splits, each from its own seed."""
    names = {"train": train, "validation": dev, "test": test}
    return {
        name: [Example(make(random.Random(f"{name} {n}")), f"{name} {n}") for n in range(count)]
        for name, count in names.items()
    }


def task_of(kind, splits):
    task_class = TASKS[kind]
    return build_task(task_class.complete(task_class.Settings(), splits["train"]))


def answers_of(kind, splits):
    """Arm: what it chose, its answers to the test split, and their scores."""
    task, found = task_of(kind, splits), {}
    for name, arm in arms_of(task, SMALL).items():
        chosen, answers = answer_by(arm, task, splits, SMALL)
        scores = [score.value for score in score_answers(task, splits["test"], answers)]
        found[name] = (chosen, [one.value for one in answers], scores)
    return found


def review(rng):
    label = rng.choices(["bad", "good"], [1, 3])[0]
    words = rng.choices("the film was a story of one man and his dog".split(), k=6)
    words.insert(rng.randrange(6), {"bad": "dull", "good": "moving"}[label])
    return {"text": " ".join(words), "label": label}


def name_in_a_sentence(rng):
    """王 begins a name or a place; only what stands beside it tells."""
    name, place = rng.choice("王李张"), rng.choice("王李张")
    text = f"{name}明先生来自{place}府"
    return {"tokens": list(text), "tags": ["B-PER", "E-PER", *"OOOO", "B-LOC", "E-LOC"]}


def test_classifiers_learn_what_the_majority_cannot():
    found = answers_of("classification", splits_of(review, 240, 60, 100))
    accuracies = {name: scores[0] for name, (_, _, scores) in found.items()}
    assert list(accuracies) == ["majority", "tfidf", "lstm"]
    assert 60 < accuracies["majority"] < 90
    assert min(accuracies["tfidf"], accuracies["lstm"]) > 97
    assert found["lstm"][0].startswith("learning rate 0.02, epoch")


def test_taggers_are_scored_by_whole_entities():
    found = answers_of("labelling", splits_of(name_in_a_sentence, 150, 30, 40))
    entities = {name: scores[0] for name, (_, _, scores) in found.items()}
    assert entities["lstm"] > 97
    assert entities["majority"] < entities["lstm"] - 10


def test_a_summary_is_as_many_first_sentences_as_serve_best_on_dev():
    def summary(rng):
        sentences = [f"Item {rng.randrange(100)} was sold. " for _ in range(5)]
        return {"source": "".join(sentences), "target": "".join(sentences[:2]).strip()}

    chosen, _, scores = answers_of("summarisation", splits_of(summary, 5, 10, 10))["lead"]
    assert chosen == "first 2 sentences"
    assert scores == pytest.approx([100] * 3)


def test_questions_are_answered_by_a_clause_and_translations_by_a_copy():
    def question(rng):
        context = f"Birds live there. The tower was built in {rng.randrange(1800, 2000)}."
        answer = context.split()[-1].rstrip(".")
        return {"question": "When was the tower built?", "context": context, "answers": [answer]}

    _, answers, scores = answers_of("question_answering", splits_of(question, 5, 5, 10))["overlap"]
    assert all(answer.startswith("The tower was built in") for answer in answers)
    assert scores[0] == 0
    assert 20 < scores[1] < 50

    def pair(rng):
        name = rng.choice(["Anna", "Karl"])
        return {"source": f"{name} lives here", "target": f"{name} wohnt hier"}

    splits = splits_of(pair, 5, 5, 10)
    _, answers, _ = answers_of("translation", splits)["copy"]
    assert answers == [one.text("source") for one in splits["test"]]


def test_the_best_on_dev_answers_and_the_test_split_is_asked_once():
    splits = splits_of(review, 20, 10, 10)
    task, asked = task_of("classification", splits), []

    def arm(task, train, settings):
        for name, share in [("none", 0), ("all", 10), ("half", 5)]:

            def predict(examples, name=name, share=share):
                asked.append((name, examples is splits["test"]))
                flipped = {"good": "bad", "bad": "good"}
                labels = [task.gold(one) for one in examples]
                right = [n < share for n in range(len(labels))]
                pairs = zip(labels, right, strict=True)
                return [Answer(label if is_right else flipped[label]) for label, is_right in pairs]

            yield name, predict

    lines = []
    chosen, answers = answer_by(arm, task, splits, SMALL, lines.append)
    assert chosen == "all"
    assert [one.value for one in answers] == [task.gold(one) for one in splits["test"]]
    assert asked == [("none", False), ("all", False), ("half", False), ("all", True)]
    shares = {"none": "0.0", "all": "100.0", "half": "50.0"}
    assert lines == [f"{name}: dev accuracy {share}" for name, share in shares.items()]
    without = {**splits, "test": []}
    assert len(answer_by(arm, task, without, SMALL)[1]) == 10


def test_an_epoch_answers_with_its_own_weights_however_long_training_went_on():
    splits = splits_of(review, 60, 5, 5)
    task = task_of("classification", splits)
    arm, dev = arms_of(task, SMALL)["lstm"], splits["validation"]
    epochs = [(predict(dev), predict) for _, predict in arm(task, splits["train"], SMALL)]
    assert len(epochs) == 10
    assert [predict(dev) for _, predict in epochs] == [then for then, _ in epochs]
    assert epochs[5][0] != epochs[9][0]


def test_arms_that_are_not_there_are_named():
    task = task_of("classification", splits_of(review, 10, 1, 1))
    with pytest.raises(ConfigError, match="svm is no baseline of classification; it has majority"):
        arms_of(task, BaselineSettings(arms=["svm"]))
    assert list(arms_of(task, BaselineSettings(arms=["lstm"]))) == ["lstm"]
    dialogue = build_task(TASKS["dialogue"].Settings())
    with pytest.raises(ConfigError, match="dialogue has no baselines; they are there for"):
        arms_of(dialogue, SMALL)
