"""An ensemble of clozes teaches a classifier: in one process, with models of one layer."""

import json

import numpy as np
import pytest
import torch
from finetune_scenarios import SMALL, reviews, small_tokenizer, write_folder
from train_scenarios import Runner

from glm_dist.config import load_config
from glm_dist.data.samples import build_row_builder
from glm_dist.data.shards import TokenDataset
from glm_dist.engine import save_weights
from glm_dist.engine.folders import CONFIG
from glm_dist.errors import ConfigError
from glm_dist.evaluate.soft_labels import soft_labels
from glm_dist.evaluate.task_report import score_answers
from glm_dist.inference import load_model
from glm_dist.model import ModelSettings, build_model
from glm_dist.tasks import load_task
from glm_dist.train.pet import Pet
from glm_dist.train.pet_settings import PetSettings

pytestmark = pytest.mark.usefixtures("one_thread")
PATTERNS = ["[MASK] : {text}", "{text} was [MASK]"]
SHOTS, SEEDS = 16, [3]


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("pet")
    tokenizer = small_tokenizer()
    settings = ModelSettings(**SMALL["model"], vocab_size=tokenizer.vocab_size)
    save_weights(folder / "base", dict(build_model(settings).named_parameters()))
    tokenizer.save(folder / "base")
    (folder / "base" / CONFIG).write_text(json.dumps({"model": settings.model_dump(mode="json")}))
    write_folder(folder / "data", {"train": 200, "dev": 60, "test": 60})
    return folder


def settings_of(home, name="run", **changes):
    paths = {split: str(home / "data" / f"{split}.csv") for split in ("train", "dev", "test")}
    task = {"kind": "classification", **paths, "shots": SHOTS, "patterns": PATTERNS}
    task |= changes.pop("task", {})
    values = {**SMALL, "init_from": str(home / "base"), "run_folder": str(home / name)}
    values |= {"task": task, "seeds": SEEDS, "epochs": 12, "final": {"epochs": 4}, **changes}
    values |= {"evaluations_per_epoch": 0.25}
    values.pop("model")
    overrides = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    return load_config(PetSettings, overrides=overrides)


def train(prepared):
    Runner(prepared.dataset, prepared.settings, prepared.settings.run_path).run()


def refuse(prepared):
    raise AssertionError(f"{prepared.settings.run_path} is trained again")


@pytest.fixture(scope="module")
def done(home):
    told = []
    pet = Pet(settings_of(home), train)
    return pet, pet.run(told.append), told


def accuracy(pet, answers):
    return score_answers(pet.task, pet.scored, answers)[0].value


def test_every_pattern_has_a_model_of_each_seed_and_the_classifier_learns_from_them(done):
    pet, outcome, told = done
    assert [(one.pattern, one.seed) for one in outcome.members] == [
        (pattern, seed) for pattern in PATTERNS for seed in SEEDS
    ]
    assert len(told) == len(PATTERNS) + 1
    single = [accuracy(pet, one.answers) for one in outcome.members]
    assert accuracy(pet, outcome.ensemble) >= min(single)
    assert accuracy(pet, outcome.final) > 80


def test_labels_of_texts_that_are_to_be_labelled_are_not_looked_at(done, home):
    pet, _, _ = done
    assert len(pet.splits["train"]) == 2 * SHOTS
    assert len(pet.unlabelled) == 200 - 2 * SHOTS
    assert {one.text("label") for one in pet.unlabelled} == {""}
    assert not {one.place for one in pet.unlabelled} & {one.place for one in pet.splits["train"]}


def test_what_the_classifier_is_taught_are_the_ensembles_probabilities(done):
    pet, outcome, _ = done
    votes = np.stack([one.votes for one in outcome.members])
    weights = [outcome.weights[one.pattern] for one in outcome.members]
    expected = soft_labels(votes, weights, 2.0)
    settings = pet._final_settings()
    dataset = TokenDataset.open(pet.final_folder / "data")
    builder = build_row_builder(dataset, "train", settings.rows, settings.objective, 0)
    packed = builder.packer(0).pack(range(len(builder.lengths)), builder.lengths.tolist())
    rows = builder.build(np.arange(len(packed)), ((0, pieces) for pieces in packed))
    taught = rows["targets"][rows["loss_mask"] > 0]
    np.testing.assert_allclose(taught[: len(expected)], expected, atol=1e-6)
    assert set(taught[len(expected) :].ravel()) == {0, 1}


def test_the_classifier_is_a_model_like_any_other(done):
    pet, outcome, _ = done
    model, tokenizer = load_model(pet.final_folder)
    task = load_task(pet.final_folder / "model", tokenizer)
    assert model.settings.head.kind == "sequence_classification"
    assert (task.settings.method, list(task.labels)) == ("head", ["bad", "good"])


def test_what_is_finished_is_not_trained_again(done, home):
    _, outcome, _ = done
    again = Pet(settings_of(home), refuse).run(lambda line: None)
    assert again.weights == outcome.weights
    assert [one.value for one in again.final] == [one.value for one in outcome.final]
    with pytest.raises(ConfigError, match="holds a run of other settings"):
        Pet(settings_of(home, soften=3.0), refuse)


def test_texts_may_come_from_a_file_without_labels_and_are_none_of_those_scored(home):
    path = home / "texts.csv"
    texts = [text for text, _ in reviews(50, 9)]
    scored = (home / "data" / "test.csv").read_text().splitlines()[1].split(",")[0]
    path.write_text("\n".join(["text", *texts, scored]))
    pet = Pet(settings_of(home, "file", unlabelled=str(path)), refuse)
    assert [one.text("text") for one in pet.unlabelled] == texts


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"shots": None}, "unlabelled: there are no texts to label"),
        ({"method": "head"}, "task.method: the ensemble classifies by cloze"),
    ],
)
def test_what_cannot_be_run_is_refused(home, task, message):
    with pytest.raises(ConfigError, match=message):
        Pet(settings_of(home, "none", task=task), refuse)
