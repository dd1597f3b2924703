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
