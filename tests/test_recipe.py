"""Recipes: what is refused, and that a resolved recipe says all."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet import recipe
from alexnet.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepoch = 5", r"no setting 'train\.epoch': did you mean 'train\.epochs'\?"),
        ("[trian]\nepochs = 5", "no setting 'trian'"),
        ("[train]\nepochs = 'five'", r"train\.epochs is 'five', but should be a valid integer"),
        ("[train]\nepochs = 0", r"train\.epochs is 0, but should be greater than or equal to 1"),
        ("[train]\nkeep = 'worst'", r"train\.keep is 'worst', but should be 'best' or 'last'"),
        ("[optimizer]\nrate = nan", r"optimizer\.rate is nan, but should be a finite number"),
        ("[model]\nvariant = 'papper'", r"model\.variant is 'papper': did you mean 'paper'\?"),
        ("[augment]\nmirror = 'maybe'", r"augment\.mirror is 'maybe'"),
        ("[train\nepochs = 5", "is not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_naming_the_key_and_the_value(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        recipe.load(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epochs=many", "train.epochs is 'many', but should be a valid integer"),
        ("train.epoch=3", "did you mean 'train.epochs'?"),
        ("epochs=3", "no setting 'epochs'"),
        ("train.epochs", "write it as key=value"),
        ("images.input=-3", "images.input is -3"),
        ("train.class_weights=yes", "train.class_weights is 'yes', but should be 'none' or 'balanced'"),
    ],
)
def test_a_wrong_set_is_refused(setting: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.load("fast").with_settings(recipe.settings_from([setting]))
    assert message in str(caught.value)


def test_set_takes_values_as_toml_and_plain_words() -> None:
    settings = recipe.settings_from(
        ["train.epochs=5", "augment.mirror=false", "images.mean=[0.1, 0.2, 0.3]", "train.keep=last"]
    )
    found = recipe.load("fast").with_settings(settings)
    assert (found.train.epochs, found.augment.mirror, found.images.mean, found.train.keep) == (
        5,
        False,
        (0.1, 0.2, 0.3),
        "last",
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [("optimizer.form=2012", "2012"), ("data.dataset = 7", "7"), ("train.tensorboard=1", "1"), ("data.root=7", Path("7"))],
)
def test_a_key_that_takes_text_gets_it_whatever_it_looks_like(setting: str, value: object) -> None:
    changed = recipe.load("fast").with_settings(recipe.settings_from([setting]))
    section, _, key = setting.partition("=")[0].strip().partition(".")
    assert getattr(getattr(changed, section), key) == value


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'fast'"):
        recipe.load("fats")
    with pytest.raises(RecipeError, match=r"cannot read the recipe nowhere\.toml"):
        recipe.load("nowhere.toml")


@pytest.mark.parametrize("name", recipe.names())
def test_a_recipe_inside_names_its_source_command_time_and_figure(name: str) -> None:
    head = recipe.read_text(name).partition("\n[")[0]
    assert head.startswith(f"# {name}: ")
    for word in ("# Source ", "# Command ", "# Time ", "# Expect "):
        assert word in head, word


@pytest.mark.parametrize("name", recipe.names())
def test_a_recipe_survives_writing_and_reading(name: str) -> None:
    found = recipe.load(name)
    assert recipe.parse(tomllib.loads(found.to_toml()), "again") == found


@given(
    st.floats(1e-6, 10),
    st.integers(1, 10_000),
    st.text(st.characters(codec="utf-8"), max_size=30),
)
def test_any_settings_survive_writing_and_reading(rate: float, epochs: int, dataset: str) -> None:
    changed = recipe.Recipe().with_settings({"optimizer.rate": rate, "train.epochs": epochs, "data.dataset": dataset})
    assert recipe.parse(tomllib.loads(changed.to_toml()), "again") == changed


def test_a_missing_key_of_ones_own_file_has_its_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nepochs = 3\n")
    found = recipe.load(str(file))
    assert (found.name, found.train.epochs, found.train.batch) == ("mine", 3, recipe.Train().batch)
