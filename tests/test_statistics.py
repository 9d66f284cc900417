"""What is taken from the training images: means, deviations, colour axes, against NumPy in float64; and which images train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from proof.pictures import picture
from sklearn.model_selection import train_test_split

from alexnet.data import statistics
from alexnet.data.augment import DRAWS, training_input
from alexnet.data.batches import SplitImages
from alexnet.data.cache import Pixels
from alexnet.data.dataset import open_dataset, resolve
from alexnet.data.preprocessing import pixels
from alexnet.data.sources import open_table
from alexnet.data.splits import RULES, split
from alexnet.data.statistics import measure
from alexnet.data.table import Table
from alexnet.errors import DataError
from alexnet.recipe import Data, Preprocessing, Recipe, Schedule
from test_sources import make_table

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three sizes that train; white ones validate, black ones test."""
    root = tmp_path_factory.mktemp("split") / "split"
    for kind, label in enumerate(("a", "b")):
        for i in range(6):
            for name, image in (("train", picture(kind, i, (30 + 5 * (i % 3), 40))), ("val", "white"), ("test", "black")):
                (root / name / label).mkdir(parents=True, exist_ok=True)
                image = Image.new("RGB", (40, 40), image) if isinstance(image, str) else image
                image.save(root / name / label / f"{i}.png")
    return root


def measured(root: Path, **sections: dict[str, Any]) -> tuple[Recipe, NDArray[np.float32] | None, Floats]:
    """Return what `measure` does, and the training images by Pillow and `pixels`, N S S 3 from 0 to 1."""
    keys = {f"{section}.{key}": value for section, named in sections.items() for key, value in named.items()}
    table = open_table(root)
    recipe = resolve(Recipe().with_settings(keys), table)
    preprocessing = recipe.images.resolved()
    dataset = open_dataset(table, preprocessing, 2, recipe.data)
    seen = np.stack([pixels(root / name, preprocessing) for name in dataset.names("train")]).astype(np.float64) / 255
    return *measure(recipe, dataset.images("train")), seen


@pytest.mark.parametrize("levels", [1, 255])
@pytest.mark.parametrize("stored", [32, "full"])
def test_means_and_deviations_are_those_of_the_training_images_alone(split_folder: Path, levels: int, stored: Any) -> None:
    images = {"cache_size": stored, "input": 24, "value_range": levels}
    found, image, seen = measured(split_folder, images={**images, "mean": "channels", "std": "channels"})
    assert image is None
    assert len(seen) == 12
    assert found.images.mean == pytest.approx(seen.mean((0, 1, 2)) * levels, abs=1e-4)
    assert found.images.std == pytest.approx(seen.std((0, 1, 2)) * levels, abs=1e-4)
    found, image, seen = measured(split_folder, images={**images, "mean": "one", "std": "one"})
    assert image is None
    assert found.images.mean == pytest.approx(seen.mean() * levels, rel=1e-9)
    assert found.images.std == pytest.approx(seen.std() * levels, rel=1e-9)
    for kind in ("image", "image-centre"):
        found, image, seen = measured(split_folder, images={**images, "mean": kind, "std": "one"})
        assert image is not None
        assert (image.dtype, image.shape) == (np.float32, (24 if stored == "full" else 32,) * 2 + (3,))
        np.testing.assert_allclose(image, seen.mean(0) * 255, rtol=1e-6)
        assert found.images.mean == kind, "it is named; the pixels are kept beside the weights"
        assert found.images.std == pytest.approx(seen.std() * levels, rel=1e-9)


def test_colour_axes_are_the_principal_components_of_training_pixels(split_folder: Path) -> None:
    for unit in ("deviations", "variances"):
        found, _, seen = measured(split_folder, augment={"colour_noise": 0.1, "colour_axes": unit}, images={"cache_size": 32})
        flat = seen.reshape(-1, 3)
        _, singular, vectors = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
        deviations = singular / np.sqrt(len(flat))
        wanted = vectors * (deviations if unit == "deviations" else deviations**2)[:, None]
        axes = np.array(found.augment.colour_axes)[::-1]  # largest first
        for row, other in zip(axes, wanted, strict=True):
            assert min(np.abs(row - other).max(), np.abs(row + other).max()) < 1e-9
        if unit == "deviations":
            np.testing.assert_allclose(axes.T @ axes, np.cov(flat.T, bias=True), atol=1e-12)


@pytest.mark.parametrize("levels", [1, 255])
def test_colour_noise_spreads_as_the_colours_of_the_images_do(split_folder: Path, levels: int) -> None:
    images = {"cache_size": 32, "input": 32, "value_range": levels, "mean": "channels", "std": [0.2 * levels, 0.5, 3.0]}
    found, _, seen = measured(split_folder, images=images, augment={"colour_noise": 0.3, "horizontal_flip": False})
    covariance = np.cov(seen.reshape(-1, 3).T, bias=True)
    preprocessing = found.images.resolved().model_copy(update={"cache_size": 2, "input": 2})
    draws = torch.rand(100_000, len(DRAWS), generator=torch.Generator().manual_seed(0))
    grey = torch.full((len(draws), 2, 2, 3), 100, dtype=torch.uint8)
    plain = training_input(grey, draws, preprocessing, found.augment.model_copy(update={"colour_noise": 0.0}))
    noisy = training_input(grey, draws, preprocessing, found.augment)
    added = (noisy - plain).double().numpy()
    np.testing.assert_allclose(added, added[:, :, :1, :1].repeat(2, 2).repeat(2, 3), atol=1e-4, err_msg="one colour an image")
    scale = np.array(preprocessing.std) / levels
    wanted = 0.09 * covariance / np.outer(scale, scale)
    deviations = np.sqrt(np.diag(wanted))
    np.testing.assert_allclose(added[:, :, 0, 0].mean(0) / deviations, 0, atol=0.02)
    np.testing.assert_allclose(np.cov(added[:, :, 0, 0].T) / np.outer(deviations, deviations),
                               wanted / np.outer(deviations, deviations), atol=0.03)  # fmt: skip
    shrunk = training_input(grey, draws, preprocessing, found.augment.model_copy(update={"colour_shrink": True}))
    torch.testing.assert_close(shrunk, noisy / 1.3)


def test_noise_that_only_the_epoch_table_asks_for_has_its_axes_too(split_folder: Path) -> None:
    schedule = Schedule(kind="constant", table=[{"epoch": 3, "colour_noise": 0.1}]).model_dump(exclude_none=True)
    found, _, seen = measured(split_folder, schedule=schedule, images={"cache_size": 32})
    axes = np.array(found.augment.colour_axes)
    np.testing.assert_allclose(axes.T @ axes, np.cov(seen.reshape(-1, 3).T, bias=True), atol=1e-12)


@given(st.integers(1, 9), st.integers(1, 200), st.integers(0, 2**32))
@settings(max_examples=25)
def test_any_images_give_the_figures_of_numpy(side: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    preprocessing = Preprocessing(cache_size=side, input=side, fit="crop", reduced_decode=False, resize="bilinear")
    chosen = np.arange(count)[:: 1 + seed % 3]
    images = SplitImages(Pixels(values.ravel(), np.full((count, 2), side), preprocessing), chosen, chosen)
    found, seen = statistics.gather(images), values[chosen].astype(np.float64) / 255
    np.testing.assert_allclose(found.mean_image, seen.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.mean, seen.mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(found.std, seen.std((0, 1, 2)), atol=1e-7)
    np.testing.assert_allclose(found.covariance, np.cov(seen.reshape(-1, 3).T, bias=True), atol=1e-12)


@pytest.mark.parametrize("std", ["channels", "one"])
def test_images_of_one_colour_do_not_divide_by_zero(std: str) -> None:
    images = one_colour(40)
    found, _ = measure(Recipe().with_settings({"images.std": std, "augment.colour_noise": 0.1}), images)
    assert np.min(found.images.std) == pytest.approx(1e-3)
    assert np.isfinite(found.augment.colour_axes).all()


def one_colour(count: int) -> SplitImages:
    preprocessing = Preprocessing(cache_size=4, input=4, fit="crop", reduced_decode=False, resize="bilinear")
    return SplitImages(
        Pixels(np.full(count * 48, 200, np.uint8), np.full((count, 2), 4), preprocessing), *[np.arange(count)] * 2
    )


def test_channels_take_a_sample_where_images_are_many_and_a_tutorials_figures_take_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SAMPLE", 10)
    looked: list[int] = []
    gather = statistics.gather
    monkeypatch.setattr(statistics, "gather", lambda images: looked.append(len(images)) or gather(images))
    for changes in ({}, {"images.mean": "one"}, {"images.std": "one"}, {"images.mean": "image"}):
        measure(Recipe().with_settings(changes), one_colour(45))
    fixed = {"images.mean": 0.5, "images.std": 1.0}
    measure(Recipe().with_settings(fixed), one_colour(45))
    assert looked == [12, 45, 45, 45], "and nothing where the recipe says it all"


@pytest.mark.parametrize(("most", "epochs"), [(0, 30), (450, 10), (10, 1), (10**6, 30)])
def test_a_large_dataset_takes_fewer_epochs(most: int, epochs: int) -> None:
    for mean in (0.5, "channels"):
        recipe = Recipe().with_settings({"train.max_images": most, "train.epochs": 30, "images.mean": mean})
        assert measure(recipe, one_colour(45))[0].train.epochs == epochs


def test_a_measured_recipe_is_not_measured_again(split_folder: Path) -> None:
    images = {"cache_size": 32, "mean": "channels", "std": "one"}
    found, _, _ = measured(split_folder, images=images, augment={"colour_noise": 0.1})
    assert measure(found, one_colour(4)) == (found, None)


# Which images train

COUNTS = {"a": 23, "b": 17, "c": 4}


def rule(table: Table, name: str, seed: int = 0, **changes: float) -> Table:
    return split(table, Data(**{"split": name, "split_seed": seed, "validation": 0.25, "test": 0.0, **changes}))


def test_first_takes_the_first_and_the_class_order_of_a_folder_shows() -> None:
    done = rule(make_table(COUNTS), "first")
    assert done.splits.tolist() == ["val"] * 11 + ["train"] * 33


@given(st.integers(0, 10_000), st.floats(0.05, 0.9))
@settings(max_examples=20)
def test_keras_tail_takes_the_last_after_keras_shuffle(seed: int, share: float) -> None:
    table = make_table({"a": 23, "b": 21})
    names = np.array(table.images)
    np.random.RandomState(seed).shuffle(names)  # as `image_dataset_from_directory` does with its list of paths
    try:
        done = rule(table, "keras-tail", seed, validation=share)
    except DataError:  # it left a class without training images
        assert len({name[0] for name in names[: len(names) - int(len(names) * share)]}) < 2
        return
    assert {table.images[i] for i in done.rows("val")} == set(names[len(names) - int(len(names) * share) :])


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_train_test_split_is_scikit_learns_on_the_list_of_names(seed: int) -> None:
    table = make_table({"a": 23, "b": 21})
    _, wanted = train_test_split(table.images, test_size=0.25, random_state=seed)
    assert {table.images[i] for i in rule(table, "train_test_split", seed).rows("val")} == set(wanted)


@given(st.sampled_from([*RULES, "hash"]), st.integers(0, 100), st.sampled_from([0.0, 0.2, 0.5]))
@settings(max_examples=40)
def test_every_rule_splits_disjointly_and_holds_the_test_share_out_before(name: str, seed: int, test: float) -> None:
    table = make_table({"a": 40, "b": 40})
    done = rule(table, name, seed, test=test)
    assert set(done.splits) == {"train", "val"} | ({"test"} if test else set())
    held_out = int(80 * test)
    assert len(done.rows("test")) == held_out
    assert len(done.rows("val")) == round((80 if name == "hash" else 80 - held_out) * 0.25)
    if name != "hash":
        same = {tuple(rule(table, other, seed, test=test).rows("test")) for other in RULES}
        assert same == {tuple(done.rows("test"))}, "the same test images whatever chooses the validation images"


@pytest.mark.parametrize("name", RULES)
def test_a_declared_test_or_validation_set_is_kept(name: str) -> None:
    table = make_table({"a": 40, "b": 40})
    declared = replace(table, splits=np.array(["test" if i % 4 == 3 else "train" for i in range(80)], "<U5"))
    done = rule(declared, name, test=0.3)
    assert np.array_equal(done.rows("test"), declared.rows("test"))
    assert done.counts() == {"train": 45, "val": 15, "test": 20}
    wanted = RULES[name](declared.rows("train"), 0.25, 0)
    assert set(done.rows("val")) == set(wanted) < set(declared.rows("train"))
    both = replace(table, splits=np.array(["val" if i % 4 == 3 else "train" for i in range(80)], "<U5"))
    assert np.array_equal(rule(both, name, test=0.3).splits, both.splits)


@pytest.mark.parametrize(
    ("name", "share"),
    [*((name, share) for name in ("first", "keras-tail") for share in (0.01, 0.99)), ("train_test_split", 0.99)],
)
def test_too_few_images_to_train_or_to_validate_is_one_line(name: str, share: float) -> None:
    with pytest.raises(DataError, match=r"is too small: of 12 readable images \d+ would train the network and \d+ validate it"):
        rule(make_table({"a": 6, "b": 6}), name, validation=share)
