"""What the page on tasks says is so: its configs load, and its task of one file works."""

import re
from pathlib import Path

import pytest
import yaml

from glm_dist.config import load_config
from glm_dist.tasks import TASKS, Binding
from glm_dist.tasks.examples import Example
from glm_dist.train.finetune_settings import FinetuneSettings
from glm_dist.train.pet_settings import PetSettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tasks.md").read_text()
CONFIGS = sorted((ROOT / "jobs" / "configs" / "tasks").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_short_valid_and_in_the_table_under_its_kind(path):
    assert len(path.read_text().splitlines()) < 30
    settings = load_config(FinetuneSettings, path)
    assert settings.name == path.stem
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{settings.task.kind}` |"))
    assert path.stem in re.split(r"[ ,|]+", row)


def test_the_config_of_few_labels_and_many_texts_is_valid_and_named_on_the_page():
    path = ROOT / "jobs" / "configs" / "pet.yaml"
    assert len(path.read_text().splitlines()) < 30
    assert len(load_config(PetSettings, path).task.patterns) > 1
    assert "jobs/configs/pet.yaml" in PAGE


def test_every_kind_is_on_the_page():
    assert {kind for kind in TASKS if f"| `{kind}` |" in PAGE} == set(TASKS)


def test_the_task_of_one_file_learns_and_asks(tokenizer):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (config,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict = {}
    exec(code, names)
    task_class = names["Keywords"]
    settings = task_class.Settings(**yaml.safe_load(config)["task"])
    task = task_class(settings, Binding(tokenizer, 64))
    example = Example({"source": "one man and his dog", "target": "man dog"}, "line 1")
    (sample,) = (one.sample for one in task.training_samples(example))
    (question,) = task.questions(example)
    assert task.tokenizer.decode(sample.targets[sample.loss_mask > 0]) == " man dog"
    assert task.tokenizer.decode(question.tokens) == "one man and his dog\nKeywords:"
