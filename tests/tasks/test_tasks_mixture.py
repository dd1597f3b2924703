"""Several tasks as one: each example is what its own task makes of it."""

import numpy as np
import pytest
from pydantic import ValidationError

from glm_dist.tasks import TASKS, Binding, Reply, build_task, load_task, save_task
from glm_dist.tasks.examples import Example
from glm_dist.tasks.kinds import KINDS
from glm_dist.tasks.mixture import Mixture, MixtureSettings, named
from glm_dist.tokenizer import TokenizerSettings, train_tokenizer

PARTS = {
    "mood": {"kind": "classification", "verbalizers": {"0": "bad", "1": "good"}, "balance": 1.0},
    "german": {"kind": "translation", "target_language": "de", "decoding": {"max_tokens": 9}},
}
MOODS = [
    Example({"text": text, "label": label}, text)
    for text, label in (("a dull film", "0"), ("warm", "1"), ("lovely", "1"), ("bright", "1"))
]
PAIRS = [Example({"source": "a dog", "target": "ein Hund"}, "pair")]
ALL = [*(named("mood", one) for one in MOODS), *(named("german", one) for one in PAIRS)]


@pytest.fixture(scope="module")
def binding():
    texts = ["a dull film", "warm lovely bright dog good bad", "ein Hund", "en to de"]
    return Binding(train_tokenizer(texts, TokenizerSettings(vocab_size=320)), 64)


@pytest.fixture(scope="module")
def mixture(binding):
    return build_task(TASKS["mixture"].complete(MixtureSettings(tasks=PARTS), ALL), binding)


@pytest.fixture(scope="module")
def alone(binding):
    """The same tasks, each by itself."""
    found = {}
    for name, examples in (("mood", MOODS), ("german", PAIRS)):
        kind = KINDS[PARTS[name]["kind"]]
        found[name] = build_task(kind.complete(kind.Settings(**PARTS[name]), examples), binding)
    return found


def same(ours, theirs):
    """Whether two samples have the same arrays."""
    pairs = zip(ours, theirs, strict=True)
    return all(np.array_equal(one, two) for one, two in pairs)


def test_examples_are_learnt_and_asked_as_their_own_task_does(mixture, alone):
    assert isinstance(mixture, Mixture)
    for example in ALL:
        name = example.fields["task"]
        part = alone[name]
        for method in ("training_samples", "dev_samples"):
            theirs = getattr(part, method)(example)
            theirs = [one for one in theirs if one.compared.option in (-1, one.compared.gold)]
            ours = getattr(mixture, method)(example)
            assert len(ours) == len(theirs) == 1
            assert same(ours[0].sample, theirs[0].sample)
        (ours,), (theirs,) = mixture.questions(example), part.questions(example)
        assert np.array_equal(ours.tokens, theirs.tokens)
        assert ours.places == theirs.places
        assert ours.decoding == part.decoding
        assert mixture.shown(example) == part.shown(example)
        assert mixture.gold(example) == part.gold(example)
        assert mixture.source(example) == name


def test_dev_samples_know_their_task(mixture):
    numbers = [mixture.dev_samples(one)[0].compared.gold for one in ALL]
    assert numbers == [0, 0, 0, 0, 1]


def test_rare_labels_are_repeated_within_their_task_alone(mixture):
    assert mixture.repeats(ALL) == [3, 1, 1, 1, 1]


def test_an_input_names_its_task(mixture):
    example = mixture.ask({"task": "german", "source": "a dog", "text": ""}, "input 0")
    assert example.fields["task"] == "german"
    assert mixture.told(example, mixture.answer(example, [Reply(("ein Hund",))])) == {
        "value": "ein Hund"
    }
    with pytest.raises(ValueError, match="task: got None; give one of mood, german"):
        mixture.ask({"source": "a dog"}, "input 0")
    with pytest.raises(ValueError, match="'text' is no field of translation"):
        mixture.ask({"task": "german", "source": "a dog", "text": "x"}, "input 0")


def test_a_model_folder_carries_all_of_them(mixture, binding, tmp_path):
    given = mixture.settings.model_dump()
    given["tasks"]["mood"]["train"] = "somewhere.csv"
    save_task(tmp_path, MixtureSettings(**given), 64)
    found = load_task(tmp_path, binding.tokenizer)
    assert found.settings == mixture.settings
    assert "somewhere" not in (tmp_path / "task.json").read_text()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"tasks": PARTS, "train": "a.csv"}, "train: belongs to each of task.tasks"),
        ({"tasks": {"a": {"kind": "labelling"}}}, "a needs a head of its own"),
        (
            {"tasks": {"a": {"kind": "classification", "method": "head"}}},
            "a needs a head of its own",
        ),
        ({"tasks": {}}, "at least 1 item"),
        ({"tasks": PARTS, "most_examples": 0}, "greater than 0"),
        ({"tasks": {"a": {"kind": "mixture", "tasks": PARTS}}}, "does not match any"),
    ],
)
def test_what_cannot_be_mixed_is_refused(values, told):
    with pytest.raises(ValidationError, match=told):
        MixtureSettings(**values)
