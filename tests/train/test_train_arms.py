"""All arms of a task in one process: what is chosen, kept, resumed and compared."""

import json
import shutil

import pytest
from finetune_scenarios import SMALL, small_tokenizer, write_folder
from train_scenarios import Runner

from glm_dist.config import load_config
from glm_dist.engine import save_weights
from glm_dist.engine.folders import CONFIG
from glm_dist.errors import ConfigError, ModelError
from glm_dist.evaluate.results import entry_of
from glm_dist.model import ModelSettings, build_model
from glm_dist.train.arms import Arms, ArmSettings

LSTM = {"embedding_size": 16, "hidden_size": 16, "num_epochs": 3, "batch_size": 16}
TRAINED = ["lstm", "scratch", "glm"]


class CutOffError(Exception):
    """The comparison ended here."""


class Trains:
    """Trains in this process, so many times at most, and counts."""

    def __init__(self, most=100):
        self.most, self.runs = most, []

    def __call__(self, prepared):
        if len(self.runs) == self.most:
            raise CutOffError
        folder = prepared.settings.run_path
        self.runs.append(f"{folder.parent.name.partition('-')[0]} {folder.name}")
        Runner(prepared.dataset, prepared.settings, folder).run()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a base of random weights and a task's tables."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = small_tokenizer()
    settings = ModelSettings(**SMALL["model"], vocab_size=tokenizer.vocab_size)
    base = folder / "base"
    save_weights(base, dict(build_model(settings).named_parameters()))
    tokenizer.save(base)
    (base / CONFIG).write_text(json.dumps({"model": settings.model_dump(mode="json")}))
    write_folder(folder / "data", {"train": 200, "dev": 40, "test": 60})
    return folder


def arms_in(home, folder, train, **changes):
    data = {split: str(home / "data" / f"{split}.csv") for split in ("train", "dev", "test")}
    same = {name: value for name, value in SMALL.items() if name not in ("model", "schedule")}
    values = {
        **same,
        "run_folder": str(folder),
        "init_from": str(home / "base"),
        "task": {"kind": "classification", **data},
        "epochs": 3,
        "grid": {"learning_rates": [1e-5, 1e-2], "seeds": [3, 4]},
        "baselines": {"lstm": LSTM},
        **changes,
    }
    overrides = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    settings = load_config(ArmSettings, overrides=overrides)
    return Arms(settings, train, lambda line: None, {"date": "today"})


@pytest.fixture(scope="module")
def whole(home):
    """All arms, cut off once in the middle, and how often something was trained."""
    before, after = Trains(most=2), Trains()
    arms = arms_in(home, home / "whole", before)
    with pytest.raises(CutOffError):
        arms.run("glm")
    arms = arms_in(home, home / "whole", after)
    return arms, {name: arms.run(name) for name in arms.names}, before.runs + after.runs


def test_every_trained_arm_has_its_seeds_and_the_others_one(whole):
    arms, found, _ = whole
    assert set(found) == {"majority", "tfidf", *TRAINED}
    counts = {name: len(arm.answers) for name, arm in found.items()}
    assert counts == {name: 2 if name in TRAINED else 1 for name in found}
    assert all(len(one) == len(arms.examples) for arm in found.values() for one in arm.answers)


def test_the_learning_rate_is_that_of_the_best_dev_score_of_the_first_seed(whole):
    _, found, runs = whole
    for name in ("glm", "scratch"):
        assert all(chosen.startswith("learning rate 0.01,") for chosen in found[name].chosen)
        ours = [run for run in runs if run.startswith(name)]
        assert ours == [f"{name} run-3-1e-05", f"{name} run-3-0.01", f"{name} run-4-0.01"]


def test_the_figures_compare_all_arms_on_the_same_examples(whole):
    arms, found, _ = whole
    entry = entry_of(arms.task, arms.examples, {name: arm.answers for name, arm in found.items()})
    assert (entry["metric"], entry["examples"]) == ("accuracy", 60)
    assert entry["score"] > 90
    assert entry["majority"] == pytest.approx(50)
    assert entry["interval"][0] <= entry["score"] <= entry["interval"][1]
    gain = entry["gains"]["majority"]
    assert gain["score"] == pytest.approx(entry["score"] - 50)
    assert gain["interval"][0] > 20
    assert len(entry["arms"]["glm"]["seeds"]) == 2


def test_what_is_there_is_not_trained_again_unless_it_depends_on_what_has_changed(home, whole):
    _, found, _ = whole
    again = arms_in(home, home / "whole", Trains(most=0))
    assert {name: again.run(name).answers for name in again.names} == {
        name: arm.answers for name, arm in found.items()
    }
    longer = arms_in(home, home / "whole", Trains(most=0), epochs=4)
    assert longer.run("lstm").answers == found["lstm"].answers
    with pytest.raises(CutOffError):
        longer.run("glm")


def test_baselines_need_no_base_and_what_was_not_run_is_not_kept(home, tmp_path):
    arms = arms_in(home, tmp_path, Trains(most=0), init_from=str(home / "nothing"))
    assert arms.kept("majority") is None
    assert arms.run("majority") == arms.kept("majority")
    assert arms.base_hash is None
    assert arms.kept("glm") is None
    with pytest.raises(ModelError, match="nothing"):
        arms.check(["majority", "glm"])


def test_a_base_whose_run_goes_on_is_none_yet(home, tmp_path):
    (tmp_path / "base").mkdir()
    shutil.copy(home / "base" / CONFIG, tmp_path / "base")
    arms = arms_in(home, tmp_path, Trains(most=0), init_from=str(tmp_path / "base"))
    assert arms.run("majority").answers
    with pytest.raises(ModelError, match="no weights yet"):
        arms.check(["scratch"])


def test_an_arm_that_is_not_there_is_named(home, whole):
    with pytest.raises(ConfigError, match="arm svm: there is none; this task has majority, tfidf"):
        whole[0].run("svm")


def test_arms_need_examples_that_nothing_was_chosen_by(home, tmp_path):
    task = {"kind": "classification", "train": str(home / "data" / "train.csv")}
    with pytest.raises(ConfigError, match="give one, or task.test_share"):
        arms_in(home, tmp_path, Trains(), task=task)
