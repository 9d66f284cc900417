"""Statistics of the training images (mean, std, colour axes) compared with NumPy in float64, and split rules."""

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
from alexnet.data.dataset import open_dataset, resolve
from alexnet.data.pixels import Pixels
from alexnet.data.preprocessing import pixels
from alexnet.data.sources import open_table
from alexnet.data.splits import RULES, split
from alexnet.data.statistics import fill_statistics
from alexnet.data.table import Table
from alexnet.errors import DataError
from alexnet.recipe import Data, Preprocessing, Recipe, Schedule
from test_sources import make_table

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three sizes for training; white ones for validation, black ones for the test."""
    root = tmp_path_factory.mktemp("split") / "split"
    for kind, label in enumerate(("a", "b")):
        for i in range(6):
            for name, image in (("train", picture(kind, i, (30 + 5 * (i % 3), 40))), ("val", "white"), ("test", "black")):
                (root / name / label).mkdir(parents=True, exist_ok=True)
                image = Image.new("RGB", (40, 40), image) if isinstance(image, str) else image
                image.save(root / name / label / f"{i}.png")
    return root


def measured(root: Path, **sections: dict[str, Any]) -> tuple[Recipe, NDArray[np.float32] | None, Floats]:
    """Return the result of `fill_statistics`, and the training images by Pillow and `pixels`, N S S 3 from 0 to 1."""
    keys = {f"{section}.{key}": value for section, named in sections.items() for key, value in named.items()}
    table = open_table(root)
    recipe = resolve(Recipe().with_settings(keys), table)
    preprocessing = recipe.images.resolved()
    dataset = open_dataset(table, preprocessing, 2, recipe.data)
    seen = np.stack([pixels(root / name, preprocessing) for name in dataset.names("train")]).astype(np.float64) / 255
    return *fill_statistics(recipe, dataset.images("train")), seen


@pytest.mark.parametrize("levels", [1, 255])
@pytest.mark.parametrize("stored", [32, "full"])
def test_mean_and_std_of_training_images_only(split_folder: Path, levels: int, stored: Any) -> None:
    images = {"cache_size": stored, "input": 24, "value_range": levels}
    result, image, seen = measured(split_folder, images={**images, "mean": "channels", "std": "channels"})
    assert image is None
    assert len(seen) == 12
    assert result.images.mean == pytest.approx(seen.mean((0, 1, 2)) * levels, abs=1e-4)
    assert result.images.std == pytest.approx(seen.std((0, 1, 2)) * levels, abs=1e-4)
    result, image, seen = measured(split_folder, images={**images, "mean": "one", "std": "one"})
    assert image is None
    assert result.images.mean == pytest.approx(seen.mean() * levels, rel=1e-9)
    assert result.images.std == pytest.approx(seen.std() * levels, rel=1e-9)
    for kind in ("image", "image-centre"):
        result, image, seen = measured(split_folder, images={**images, "mean": kind, "std": "one"})
        assert image is not None
        assert (image.dtype, image.shape) == (np.float32, (24 if stored == "full" else 32,) * 2 + (3,))
        np.testing.assert_allclose(image, seen.mean(0) * 255, rtol=1e-6)
        assert result.images.mean == kind, "the setting is kept; the pixels are saved with the weights"
        assert result.images.std == pytest.approx(seen.std() * levels, rel=1e-9)


def test_colour_axes_are_principal_components(split_folder: Path) -> None:
    for unit in ("deviations", "variances"):
        result, _, seen = measured(split_folder, augment={"colour_noise": 0.1, "colour_axes": unit}, images={"cache_size": 32})
        flat = seen.reshape(-1, 3)
        _, singular, vectors = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
        deviations = singular / np.sqrt(len(flat))
        expected = vectors * (deviations if unit == "deviations" else deviations**2)[:, None]
        axes = np.array(result.augment.colour_axes)[::-1]  # largest first
        for row, other in zip(axes, expected, strict=True):
            assert min(np.abs(row - other).max(), np.abs(row + other).max()) < 1e-9
        if unit == "deviations":
            np.testing.assert_allclose(axes.T @ axes, np.cov(flat.T, bias=True), atol=1e-12)


@pytest.mark.parametrize("levels", [1, 255])
def test_colour_noise_covariance_equals_that_of_the_images(split_folder: Path, levels: int) -> None:
    images = {"cache_size": 32, "input": 32, "value_range": levels, "mean": "channels", "std": [0.2 * levels, 0.5, 3.0]}
    result, _, seen = measured(split_folder, images=images, augment={"colour_noise": 0.3, "horizontal_flip": False})
    covariance = np.cov(seen.reshape(-1, 3).T, bias=True)
    preprocessing = result.images.resolved().model_copy(update={"cache_size": 2, "input": 2})
    draws = torch.rand(100_000, len(DRAWS), generator=torch.Generator().manual_seed(0))
    grey = torch.full((len(draws), 2, 2, 3), 100, dtype=torch.uint8)
    plain = training_input(grey, draws, preprocessing, result.augment.model_copy(update={"colour_noise": 0.0}))
    noisy = training_input(grey, draws, preprocessing, result.augment)
    added = (noisy - plain).double().numpy()
    np.testing.assert_allclose(added, added[:, :, :1, :1].repeat(2, 2).repeat(2, 3), atol=1e-4, err_msg="one colour an image")
    scale = np.array(preprocessing.std) / levels
    expected = 0.09 * covariance / np.outer(scale, scale)
    deviations = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(added[:, :, 0, 0].mean(0) / deviations, 0, atol=0.02)
    np.testing.assert_allclose(np.cov(added[:, :, 0, 0].T) / np.outer(deviations, deviations),
                               expected / np.outer(deviations, deviations), atol=0.03)  # fmt: skip
    shrunk = training_input(grey, draws, preprocessing, result.augment.model_copy(update={"colour_shrink": True}))
    torch.testing.assert_close(shrunk, noisy / 1.3)


def test_colour_axes_for_noise_in_the_table(split_folder: Path) -> None:
    schedule = Schedule(kind="constant", table=[{"epoch": 3, "colour_noise": 0.1}]).model_dump(exclude_none=True)
    result, _, seen = measured(split_folder, schedule=schedule, images={"cache_size": 32})
    axes = np.array(result.augment.colour_axes)
    np.testing.assert_allclose(axes.T @ axes, np.cov(seen.reshape(-1, 3).T, bias=True), atol=1e-12)


@given(st.integers(1, 9), st.integers(1, 200), st.integers(0, 2**32))
@settings(max_examples=25)
def test_mean_and_std_equal_numpy(side: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    preprocessing = Preprocessing(cache_size=side, input=side, fit="crop", reduced_decode=False, resize="bilinear")
    chosen = np.arange(count)[:: 1 + seed % 3]
    images = SplitImages(Pixels(values.ravel(), np.full((count, 2), side), preprocessing), chosen, chosen)
    result, seen = statistics.compute_statistics(images), values[chosen].astype(np.float64) / 255
    np.testing.assert_allclose(result.mean_image, seen.mean(0), atol=1e-12)
    np.testing.assert_allclose(result.mean, seen.mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(result.std, seen.std((0, 1, 2)), atol=1e-7)
    np.testing.assert_allclose(result.covariance, np.cov(seen.reshape(-1, 3).T, bias=True), atol=1e-12)


@pytest.mark.parametrize("std", ["channels", "one"])
def test_std_of_constant_images_is_not_zero(std: str) -> None:
    images = one_colour(40)
    result, _ = fill_statistics(Recipe().with_settings({"images.std": std, "augment.colour_noise": 0.1}), images)
    assert np.min(result.images.std) == pytest.approx(1e-3)
    assert np.isfinite(result.augment.colour_axes).all()


def one_colour(count: int) -> SplitImages:
    preprocessing = Preprocessing(cache_size=4, input=4, fit="crop", reduced_decode=False, resize="bilinear")
    return SplitImages(
        Pixels(np.full(count * 48, 200, np.uint8), np.full((count, 2), 4), preprocessing), *[np.arange(count)] * 2
    )


def test_mean_and_std_sample_large_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SAMPLE", 10)
    looked: list[int] = []
    original = statistics.compute_statistics
    monkeypatch.setattr(statistics, "compute_statistics", lambda images: looked.append(len(images)) or original(images))
    for changes in ({}, {"images.mean": "one"}, {"images.std": "one"}, {"images.mean": "image"}):
        fill_statistics(Recipe().with_settings(changes), one_colour(45))
    fixed = {"images.mean": 0.5, "images.std": 1.0}
    fill_statistics(Recipe().with_settings(fixed), one_colour(45))
    assert looked == [12, 45, 45, 45], "and nothing if the recipe sets all of them"


@pytest.mark.parametrize(("most", "epochs"), [(0, 30), (450, 10), (10, 1), (10**6, 30)])
def test_max_images_lowers_epochs(most: int, epochs: int) -> None:
    for mean in (0.5, "channels"):
        recipe = Recipe().with_settings({"train.max_images": most, "train.epochs": 30, "images.mean": mean})
        assert fill_statistics(recipe, one_colour(45))[0].train.epochs == epochs


def test_resolved_recipe_is_not_measured_again(split_folder: Path) -> None:
    images = {"cache_size": 32, "mean": "channels", "std": "one"}
    result, _, _ = measured(split_folder, images=images, augment={"colour_noise": 0.1})
    assert fill_statistics(result, one_colour(4)) == (result, None)


# Which images train

COUNTS = {"a": 23, "b": 17, "c": 4}


def rule(table: Table, name: str, seed: int = 0, **changes: float) -> Table:
    return split(table, Data(**{"split": name, "split_seed": seed, "validation": 0.25, "test": 0.0, **changes}))


def test_split_first() -> None:
    result = rule(make_table(COUNTS), "first")
    assert result.splits.tolist() == ["val"] * 11 + ["train"] * 33


def test_split_last() -> None:
    result = rule(make_table(COUNTS | {"c": 20}), "last")
    assert result.splits.tolist() == ["train"] * 45 + ["val"] * 15


@given(st.integers(0, 10_000), st.floats(0.05, 0.9))
@settings(max_examples=20)
def test_split_keras_tail(seed: int, share: float) -> None:
    table = make_table({"a": 23, "b": 21})
    names = np.array(table.images)
    np.random.RandomState(seed).shuffle(names)  # as `image_dataset_from_directory` shuffles its list of paths
    try:
        result = rule(table, "keras-tail", seed, validation=share)
    except DataError:  # it left a class without training images
        assert len({name[0] for name in names[: len(names) - int(len(names) * share)]}) < 2
        return
    assert {table.images[i] for i in result.rows("val")} == set(names[len(names) - int(len(names) * share) :])


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_split_train_test_split_equals_scikit_learn(seed: int) -> None:
    table = make_table({"a": 23, "b": 21})
    _, expected = train_test_split(table.images, test_size=0.25, random_state=seed)
    assert {table.images[i] for i in rule(table, "train_test_split", seed).rows("val")} == set(expected)


@given(st.sampled_from([*RULES, "hash"]), st.integers(0, 100), st.sampled_from([0.0, 0.2, 0.5]))
@settings(max_examples=40)
def test_split_rules_are_disjoint(name: str, seed: int, test: float) -> None:
    table = make_table({"a": 40, "b": 40})
    result = rule(table, name, seed, test=test)
    assert set(result.splits) == {"train", "val"} | ({"test"} if test else set())
    held_out = int(80 * test)
    assert len(result.rows("test")) == held_out
    assert len(result.rows("val")) == round((80 if name == "hash" else 80 - held_out) * 0.25)
    if name != "hash":
        same = {tuple(rule(table, other, seed, test=test).rows("test")) for other in RULES}
        assert same == {tuple(result.rows("test"))}, "the same test images whatever chooses the validation images"


@pytest.mark.parametrize("name", RULES)
def test_split_rules_keep_declared_sets(name: str) -> None:
    table = make_table({"a": 40, "b": 40})
    declared = replace(table, splits=np.array(["test" if i % 4 == 3 else "train" for i in range(80)], "<U5"))
    result = rule(declared, name, test=0.3)
    assert np.array_equal(result.rows("test"), declared.rows("test"))
    assert result.counts() == {"train": 45, "val": 15, "test": 20}
    expected = RULES[name](declared.rows("train"), 0.25, 0)
    assert set(result.rows("val")) == set(expected) < set(declared.rows("train"))
    both = replace(table, splits=np.array(["val" if i % 4 == 3 else "train" for i in range(80)], "<U5"))
    assert np.array_equal(rule(both, name, test=0.3).splits, both.splits)


@pytest.mark.parametrize(
    ("name", "share"),
    [*((name, share) for name in ("first", "last", "keras-tail") for share in (0.01, 0.99)), ("train_test_split", 0.99)],
)
def test_split_of_too_few_images_is_one_line(name: str, share: float) -> None:
    sizes = r"is too small: of 12 readable images \d+ would train the network and \d+ validate it"
    with pytest.raises(DataError, match=rf"{sizes}; add images, or change data\.validation \({share}\) or data\.test \("):
        rule(make_table({"a": 6, "b": 6}), name, validation=share)
