"""Recipes: what is refused, and round trips through TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet import recipe
from alexnet.errors import RecipeError
from conftest import started


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepoch = 5", r"no setting 'train\.epoch': did you mean 'train\.epochs'\?"),
        ("[trian]\nepochs = 5", "no setting 'trian'"),
        ("[train]\nepochs = 'five'", r"train\.epochs is 'five', but should be a valid integer"),
        ("[train]\nepochs = 0", r"train\.epochs is 0, so nothing would be trained"),
        ("[train]\nepochs = -1", r"train\.epochs is -1, but should be greater than or equal to 0"),
        ("[train]\nkeep = 'worst'", r"train\.keep is 'worst', but should be 'best' or 'last'"),
        ("[optimizer]\nlr = nan", r"optimizer\.lr is nan, but should be a finite number"),
        ("[model]\nvariant = 'papper'", r"model\.variant is 'papper': did you mean 'paper'\?"),
        ("[augment]\nhorizontal_flip = 'maybe'", r"augment\.horizontal_flip is 'maybe'"),
        ("[train\nepochs = 5", "is not valid TOML"),
    ],
)
def test_wrong_recipe_is_refused_by_key_and_value(tmp_path: Path, text: str, message: str) -> None:
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
        ("optimizer.learning_rate=0.1", "did you mean 'optimizer.lr'?"),
        ("train.lr=0.1", "did you mean 'optimizer.lr'?"),
        ("epochs=3", "no setting 'epochs'"),
        ("train.epochs", "write it as key=value"),
        ("images.input=-3", "images.input is -3"),
        ("train.class_weights=yes", "train.class_weights is 'yes', but should be 'none' or 'balanced'"),
    ],
)
def test_wrong_set_option_is_refused(setting: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.load("fast").with_settings(recipe.parse_settings([setting]))
    assert message in str(caught.value)


def test_set_takes_toml_values_and_plain_words() -> None:
    settings = recipe.parse_settings(
        ["train.epochs=5", "augment.horizontal_flip=false", "images.mean=[0.1, 0.2, 0.3]", "train.keep=last"]
    )
    result = recipe.load("fast").with_settings(settings)
    assert (result.train.epochs, result.augment.horizontal_flip, result.images.mean, result.train.keep) == (
        5,
        False,
        (0.1, 0.2, 0.3),
        "last",
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [("optimizer.form=2012", "2012"), ("data.dataset = 7", "7"), ("train.tensorboard=1", "1"), ("data.root=7", Path("7"))],
)
def test_set_of_a_text_key_stays_text(setting: str, value: object) -> None:
    changed = recipe.load("fast").with_settings(recipe.parse_settings([setting]))
    section, _, key = setting.partition("=")[0].strip().partition(".")
    assert getattr(getattr(changed, section), key) == value


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'fast'"):
        recipe.load("fats")
    with pytest.raises(RecipeError, match=r"cannot read the recipe nowhere\.toml"):
        recipe.load("nowhere.toml")


def test_recipes_state_source_command_time_and_accuracy() -> None:
    for name in recipe.names():
        head = recipe.read_text(name).partition("\n[")[0]
        assert head.startswith(f"# {name}: ")
        for word in ("# Source ", "# Command ", "# Time ", "# Expect "):
            assert word in head, f"{name}.toml lacks {word!r}"


@pytest.mark.parametrize("name", recipe.names())
def test_recipe_names_its_precision(name: str) -> None:
    """The tutorials and the paper compute in float32; their recipes say that they may compute in bfloat16."""
    text = recipe.read_text(name)
    assert "precision" in tomllib.loads(text)["train"]
    assert "bfloat16" in text
    assert ("float32" in text) is (name not in ("fast", "finetune", "head"))


@pytest.mark.parametrize("name", recipe.names())
def test_recipe_round_trip(name: str) -> None:
    result = recipe.load(name)
    assert recipe.parse(tomllib.loads(result.to_toml()), "again") == result


@given(st.floats(1e-6, 10), st.integers(1, 10_000), st.text(st.characters(codec="utf-8"), max_size=30))
def test_recipe_round_trip_of_any_settings(rate: float, epochs: int, dataset: str) -> None:
    changed = recipe.Recipe().with_settings({"optimizer.lr": rate, "train.epochs": epochs, "data.dataset": dataset})
    assert recipe.parse(tomllib.loads(changed.to_toml()), "again") == changed


def test_missing_recipe_key_has_its_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nepochs = 3\n")
    result = recipe.load(str(file))
    assert (result.name, result.train.epochs, result.train.batch_size) == ("mine", 3, recipe.Train().batch_size)


# Contradictory settings, and round trips


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["images.mean=each"], "images.mean is 'each' and images.std 'channels': set both to 'each', or neither"),
        (["images.std=each"], "images.mean is 'channels' and images.std 'each': set both to 'each', or neither"),
        (["augment.crop=true"], "augment.crop is true, but images.crop is not set"),
        (["images.cache_size=64", "images.crop=65"], "images.crop is 65, larger than images.cache_size, 64"),
        (["augment.zoom=[1.5, 0.8]"], "augment.zoom is [1.5, 0.8], but the smaller factor comes first"),
        (["augment.area=0.5"], "augment.area is 0.5, but should be a list"),
        (["augment.area=[0.9, 0.4]"], "augment.area is [0.9, 0.4], but the smaller fraction comes first"),
        (["schedule.table=[{epoch=2, lr=0.1}]"], "schedule.table sets learning rates, but schedule.kind is 'one-cycle'"),
        (["images.input=9", "images.cache_size=full", "images.crop=10"], "images.crop is 10, but full images are first"),
        (["images.mean=each", "images.std=each", "augment.colour_noise=0.1"], "augment.colour_noise is 0.1, but"),
        (["images.std=0"], "images.std is 0, but should be greater than 0"),
        (["images.std=[0.2, -0.2, 0.2]"], "images.std is [0.2, -0.2, 0.2], but should be"),
        (["images.mean=[1, 2]"], "images.mean is [1, 2], but should be a valid number or complete or"),
        (["augment.zoom=[0.8]"], "augment.zoom is [0.8], but should be complete"),
        (["schedule.table=[{lr=0.1}]"], "schedule.table.0.epoch is {'lr': 0.1}, but should be complete"),
        (["optimizer.lr_scale={fc6=-1}"], "optimizer.lr_scale.fc6 is -1, but should be greater than or equal to 0"),
        (["schedule.table=[{epoch=1, lr_scale={fc6=-1}}]"], "schedule.table.0.lr_scale.fc6 is -1, but should be"),
        (["train.save_epochs=weights"], "train.save_epochs is 'weights', but should be a file name"),
        (["train.save_epochs=../cp-{epoch}"], "train.save_epochs is '../cp-{epoch}', but should be"),
        (["train.save_epochs={epoch.__class__}"], "train.save_epochs is '{epoch.__class__}', but should be"),
        (["train.save_epochs={epoch:0999999999d}"], "train.save_epochs is '{epoch:0999999999d}', but should be"),
        (["train.tensorboard=/logs"], "train.tensorboard is '/logs', but should be a folder of its own"),
        (["train.tensorboard=model.json"], "train.tensorboard is 'model.json', but should be a folder of its own"),
        (["train.tensorboard=checkpoint/logs"], "train.tensorboard is 'checkpoint/logs', but should be a folder of its own"),
        (['train.tensorboard="a\\u0000b"'], r"train.tensorboard is 'a\x00b', but a path holds no null character"),
        (['model.weights="a\\u0000b"'], r"model.weights is 'a\x00b', but a path holds no null character"),
        (['data.root="a\\u0000b"'], r"data.root is 'a\x00b', but a path holds no null character"),
        (["train.tensorboard=logs/../.."], "train.tensorboard is 'logs/../..', but should be a folder of its own"),
        (["schedule.table=[{epoch=0}]"], "schedule.table.0.epoch is 0, but should be greater than or equal to 1"),
        (["schedule.table=[{epoch=1, lrs=1.0}]"], "no setting 'schedule.table.0.lrs': did you mean 'lr'?"),
        (["schedule.table=[{epoch=1}, {epoch=2, lr=-1}]"], "schedule.table.1.lr is -1, but should be greater than 0"),
        (["images.cache_size=big"], "images.cache_size is 'big', but should be a valid integer"),
        (["images.value_range=128"], "images.value_range is 128, but should be 1 or 255"),
        (["images.mean=average"], "images.mean is 'average', but should be a valid number"),
        (["optimizer.form=adam"], "optimizer.form is 'adam', but should be 'pytorch', 'keras' or '2012'"),
        (["stop.metric=val_top1"], "stop.metric is 'val_top1', but should be 'train_loss', 'val_loss' or 'val_error'"),
        (["data.split=random"], "data.split is 'random', but should be 'hash', 'first', 'last', 'keras-tail' or"),
    ],
)  # fmt: skip
def test_conflicting_setting_is_one_line(settings: list[str], line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.load("fast").with_settings(recipe.parse_settings(settings))
    assert str(caught.value).startswith(f"recipe: {line}")
    assert "\n" not in str(caught.value)


def test_last_batch_drop_of_the_only_batch_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.batch_size is 64, but training has only 28 images"):
        started(tmp_path / "run", photos, **{"train.batch_size": 64, "train.last_batch": "drop"})
    assert not (tmp_path / "run").exists(), "the name is free again"


changes = st.fixed_dictionaries(
    {"epoch": st.integers(1, 99)},
    optional={
        "lr": st.floats(1e-9, 10),
        "lr_scale": st.dictionaries(st.sampled_from(["bias", "conv1", "fc8.weight"]), st.floats(0, 9)),
        "colour_noise": st.floats(0, 1),
    },
)


@given(st.lists(changes, max_size=4), st.sampled_from([0.5, (0.1, 0.2, 0.3), "one", "image"]), st.none() | st.integers(1, 64))
@settings(max_examples=40)
def test_recipe_round_trip_of_table_and_none(table: Any, mean: Any, crop: int | None) -> None:
    tree = {"schedule": {"kind": "constant", "table": table}, "images": {"mean": mean, "crop": crop, "cache_size": 64}}
    made = recipe.parse(tree, "made")
    again = recipe.parse(tomllib.loads(made.to_toml()), "again")
    assert again == made
    assert again.with_settings({}) == made
    assert (made.images.crop, made.model.weights) == (crop, "")
