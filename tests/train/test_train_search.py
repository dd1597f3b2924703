"""Which settings a search tries, and which of them it takes."""

import json

import pytest

from glm_dist.errors import ConfigError
from glm_dist.train.finetune_settings import FinetuneSettings
from glm_dist.train.search import best_of, draw_search, plan_search

PATTERNS = ["{text} It was [MASK].", "[MASK]: {text}"]


def make(folder, **changes):
    task = {"kind": "classification", "train": "train.csv", **changes.pop("task", {})}
    values = {"run_folder": str(folder), "task": task, "init_from": "base", **changes}
    return FinetuneSettings(**values)


def end(trial, **figures):
    trial.settings.run_path.mkdir(parents=True)
    text = json.dumps({"best_step": 4, "dev/loss": 0.5, **figures})
    (trial.settings.run_path / "final.json").write_text(text)


def test_a_seed_gives_the_same_trials_and_more_of_them_begin_with_the_same(tmp_path):
    settings = make(tmp_path, search={"epochs": [1, 3], "batch_sizes": [8, 16]})
    trials = plan_search(settings, 6)
    assert [one.chosen for one in plan_search(settings, 6)] == [one.chosen for one in trials]
    assert [one.chosen for one in plan_search(settings, 9)[:6]] == [one.chosen for one in trials]
    other = plan_search(settings.model_copy(update={"seed": settings.seed + 1}), 6)
    assert [one.chosen for one in other] != [one.chosen for one in trials]


def test_the_first_trial_is_the_config_and_no_two_are_alike(tmp_path):
    settings = make(tmp_path, search={"epochs": [1, 3]}, task={"patterns": PATTERNS})
    first, *others = plan_search(settings, 12)
    assert first.chosen == {
        "schedule.peak_learning_rate": settings.schedule.peak_learning_rate,
        "epochs": settings.epochs,
        "task.patterns": PATTERNS,
    }
    assert len({str(one.chosen) for one in [first, *others]}) == 12
    peak = settings.schedule.peak_learning_rate
    for trial in others:
        tried = trial.settings
        assert peak / 3.01 <= tried.schedule.peak_learning_rate <= peak * 3.01
        assert tried.epochs in (1, 3)
        assert tried.task.patterns in (PATTERNS, PATTERNS[:1], PATTERNS[1:])
        assert tried.run_path.parent == tmp_path / "search"
        assert tried.init_from == "base"
    assert len({tuple(trial.settings.task.patterns) for trial in others}) > 1


def test_few_values_give_few_trials_and_a_batch_below_a_micro_batch_shrinks_it(tmp_path):
    search = {"learning_rates": [1e-3, 1e-3], "batch_sizes": [2, 8, 32]}
    trials = plan_search(make(tmp_path, search=search), 20)
    sizes = [(one.settings.batch.global_batch_size, one.settings.batch.micro_batch_size)
             for one in trials]  # fmt: skip
    assert sorted(sizes) == [(2, 1), (8, 4), (32, 4)]
    assert [one.number for one in trials] == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "count", "says"),
    [
        ({}, 1, "--search: got 1; a search tries 2 settings at least"),
        ({"evaluation": {"num_rows": 0}}, 4, "evaluation.num_rows: is 0"),
        ({"search": {"learning_rates": [1e-3, 1e-3]}}, 4, "search: holds one value of each"),
        ({"search": {"batch_sizes": [7, 8]}}, 4, "batch.global_batch_size=7: .*got 7"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path, changes, count, says):
    with pytest.raises(ConfigError, match=says):
        plan_search(make(tmp_path, **changes), count)


def test_rates_the_wrong_way_round_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the first rate is above the second"):
        make(tmp_path, search={"learning_rates": [1e-2, 1e-3]})


def test_the_least_error_is_best_and_of_equals_the_first(tmp_path):
    trials = plan_search(make(tmp_path), 4)
    assert [trial.found for trial in trials] == [None] * 4
    for trial, error in zip(trials, (0.4, 0.2, 0.2, 0.3), strict=True):
        end(trial, **{"dev/error": error})
    found = [trial.found for trial in trials]
    assert best_of(found).trial.number == 1
    assert found[3].told["dev_error"] == 0.3
    draw_search(tmp_path / "search.svg", found)
    assert "4 trials" in (tmp_path / "search.svg").read_text()


def test_another_run_is_never_taken_for_a_trial(tmp_path):
    settings = make(tmp_path, search={"epochs": [1, 3]})
    for trial in plan_search(settings, 6):
        end(trial)
    assert all(trial.found for trial in plan_search(settings, 6))
    longer = settings.model_copy(update={"dropout": 0.2})
    assert not any(trial.found for trial in plan_search(longer, 6))
    assert [one.number for one in plan_search(settings, 6)] == list(range(6))


def test_without_an_error_the_loss_judges(tmp_path):
    trial = plan_search(make(tmp_path), 2)[0]
    end(trial)
    assert (trial.found.judged, trial.found.value) == ("loss", 0.5)
