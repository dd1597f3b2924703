from typing import Annotated, Literal

import pytest
from pydantic import Field

from glm_dist.config import (
    Settings,
    dump_config,
    home,
    iter_fields,
    load_config,
    output_path,
    parse_yaml,
)
from glm_dist.errors import ConfigError


class Inner(Settings):
    learning_rate: float = 1e-3
    """Peak learning rate."""
    mode: str = "auto"


class Outer(Settings):
    steps: int = 10
    optimizer: Inner = Inner()


def load(tmp_path, text, *overrides):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(Outer, path, overrides)


def problems(tmp_path, text, *overrides):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    return caught.value.problems


def test_a_number_in_scientific_notation_without_a_dot_is_a_number(tmp_path):
    assert load(tmp_path, "optimizer: {learning_rate: 1e-4}").optimizer.learning_rate == 1e-4
    assert load(tmp_path, "", "optimizer.learning_rate=3e-3").optimizer.learning_rate == 3e-3


def test_off_stays_text(tmp_path):
    assert load(tmp_path, "optimizer: {mode: off}").optimizer.mode == "off"


def test_overrides_win_over_the_file_and_keep_its_other_keys(tmp_path):
    settings = load(
        tmp_path, "steps: 5\noptimizer: {mode: x}", "optimizer.learning_rate=1", "steps=7"
    )
    assert (settings.steps, settings.optimizer.mode, settings.optimizer.learning_rate) == (
        7,
        "x",
        1.0,
    )


def test_all_problems_come_at_once_and_misspelt_keys_are_corrected(tmp_path):
    found = problems(
        tmp_path, "stepps: 5\noptimizer: {learning_rat: 1, mode: [1]}", "steps=many", "x"
    )
    assert len(found) == 5
    assert any("stepps" in line and "'steps'" in line for line in found)
    assert any("optimizer.learning_rat" in line and "'learning_rate'" in line for line in found)


def test_a_key_of_another_level_is_pointed_to(tmp_path):
    assert "'optimizer.learning_rate'" in problems(tmp_path, "", "learning_rate=1")[0]


def test_a_duplicate_key_is_refused_with_both_lines(tmp_path):
    assert "line 1" in problems(tmp_path, "steps: 1\nsteps: 2")[0]
    assert "line 2" in problems(tmp_path, "steps: 1\nsteps: 2")[0]


@pytest.mark.parametrize("text", [".nan", ".inf", "nan"])
def test_non_finite_numbers_are_refused(tmp_path, text):
    assert "learning_rate" in problems(tmp_path, f"optimizer: {{learning_rate: {text}}}")[0]


def test_an_alias_bomb_is_refused_without_being_expanded(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "aliases" in problems(tmp_path, "\n".join(lines))[0]


def test_a_self_reference_is_refused():
    with pytest.raises(ConfigError, match="refers to itself"):
        parse_yaml("a: &a [*a]")


@pytest.mark.parametrize(
    "text", ["a: [", "{", "\t- x", "a: b: c", "- 1", "!!python/object:os.system x"]
)
def test_broken_or_hostile_yaml_is_a_config_error(tmp_path, text):
    assert problems(tmp_path, text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        load_config(Outer, tmp_path / "nothing.yaml")


def test_the_dumped_config_reads_back_equal(tmp_path):
    settings = load(tmp_path, "optimizer: {learning_rate: 1e-7, mode: off}")
    assert load(tmp_path, dump_config(settings)) == settings


def test_outputs_go_below_the_home_whatever_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("GLM_DIST_HOME", str(tmp_path))
    monkeypatch.chdir("/")
    assert home() == tmp_path
    assert output_path("runs/a") == tmp_path / "runs" / "a"
    assert output_path("/x/y").as_posix() == "/x/y"


class Cat(Settings):
    kind: Literal["cat"] = "cat"
    lives: int = 9
    """How often it may fall."""


class Dog(Settings):
    kind: Literal["dog"] = "dog"
    tricks: list[str] = []
    """What it can do."""


class OldCat(Cat):
    lives: int = 2


class Pets(Settings):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    other: OldCat = OldCat()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pet.kind=bird", "pet.kind: got 'bird'; it is one of 'cat', 'dog'"),
        ("pet.tricks=[sit]", "pet.kind: required and not given; add pet.kind=…"),
        ("pet={kind: dog, trick: 1}", "pet.trick: no such setting; did you mean 'tricks'?"),
        ("pet={kind: cat, lives: many}", "pet.lives: got 'many'"),
    ],
)
def test_one_of_several_settings_is_explained_by_the_one_that_its_kind_names(override, message):
    with pytest.raises(ConfigError) as raised:
        load_config(Pets, overrides=[override])
    (problem,) = raised.value.problems
    assert problem.startswith(message)


def test_help_tells_all_kinds_and_keeps_what_a_changed_default_means():
    told = {name: field.description for name, field in iter_fields(Pets)}
    assert told["pet.tricks"] == "What it can do."
    assert told["pet.lives"] == told["other.lives"] == "How often it may fall."
