"""The configs of the bases: each loads, and the three models differ in their objective alone."""

from pathlib import Path

import pytest

from glm_dist.config import load_config
from glm_dist.data.prepare.settings import PrepareSettings
from glm_dist.objective import Mode
from glm_dist.train.settings import PretrainSettings

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
DIFFERENT = {"name", "objective", "evaluation"}


def base(name: str) -> PretrainSettings:
    return load_config(PretrainSettings, CONFIGS / f"{name}.yaml", [])


@pytest.mark.parametrize(
    ("name", "mode"), [("base_masked", Mode.MASKED), ("base_causal", Mode.CAUSAL)]
)
def test_what_a_base_is_compared_with_has_its_size_and_its_budget(name, mode):
    ours, other = base("base"), base(name)
    assert other.objective.mode_probabilities[mode] == 1
    same = ours.model_dump(exclude=DIFFERENT)
    same["model"]["causal"] = mode is Mode.CAUSAL
    assert other.model_dump(exclude=DIFFERENT) == same


def test_the_english_base_has_the_size_and_the_budget_of_that_of_two_languages():
    different = {"name", "dataset", "rows"}
    ours, other = base("base").model_dump(), base("base_english").model_dump()
    assert {name for name in ours if ours[name] != other[name]} == different


def test_the_base_that_goes_on_in_chinese_begins_with_the_english_one():
    data = load_config(PrepareSettings, CONFIGS / "base_chinese_data.yaml", [])
    assert data.extend_tokenizer == base("base_chinese").init_from == "runs/base_english"
    assert data.output == base("base_chinese").dataset


@pytest.mark.parametrize("name", ["base_english", "base_chinese"])
def test_datasets_of_one_language_are_cleared_of_the_same_text(name):
    whole = load_config(PrepareSettings, CONFIGS / "base_data.yaml", [])
    part = load_config(PrepareSettings, CONFIGS / f"{name}_data.yaml", [])
    assert part.exclude == whole.exclude
    assert {source.name for source in part.sources} < {source.name for source in whole.sources}
    assert set(base(name).rows.source_shares) <= {source.name for source in part.sources}


def test_the_bases_read_the_dataset_that_is_cleared_of_evaluation_text():
    data = load_config(PrepareSettings, CONFIGS / "base_data.yaml", [])
    assert {data.output} == {base(name).dataset for name in ("base", "base_masked", "base_causal")}
    assert data.exclude_ngram == 13
    sources = {source.path for source in data.sources}
    assert not sources.intersection(data.exclude)
    # Of a task whose parts are cut from one file, the other one is kept out.
    learnt = {path for path in sources if "task_texts" in path}
    assert learnt
    assert {path.replace("train.jsonl", "test.jsonl") for path in learnt} <= set(data.exclude)
