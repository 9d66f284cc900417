"""Preprocessing, augmentation, schedules and splits of the four tutorials equal Keras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet.data.augment import affine
from alexnet.data.preprocessing import pixels, to_input
from alexnet.data.sources import open_table
from alexnet.data.splits import split
from alexnet.data.table import Table
from alexnet.recipe import load
from alexnet.training.schedule import EarlyStop, Plateau
from conftest import mostly_long
from keras_golden import agree, decisions, golden, inputs

# Images -------------------------------------------------------------------------------------------------------------------


def test_decoding_equals_keras() -> None:
    expected = golden("images")["photos"].astype(np.uint8).tobytes().hex()
    assert inputs.digest(inputs.photos() | inputs.small_images()) == expected, "this JPEG decoder differs: run make prove"


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("annotated", inputs.photos()),
        ("cats-dogs", inputs.photos()),
        ("cifar10", inputs.small_images()),
        ("cifar10-1x1", inputs.small_images()),
    ],
)
def test_preprocessing_equals_keras(name: str, images: dict[str, np.ndarray]) -> None:
    given = {"images.mean": inputs.MEAN} if name == "annotated" else {}
    given |= {"images.cache_size": 32} if name.startswith("cifar10") else {}  # what `auto` resolves to
    preprocessing = load(name).with_settings(given).images.resolved()
    worst = 0.0
    for image, array in images.items():
        x = to_input(torch.from_numpy(np.stack([pixels(array, preprocessing)])), preprocessing)
        made = x[0].permute(1, 2, 0).double().reshape(-1).numpy()  # H W C
        norm, *values = golden("images")[f"{name.removesuffix('-1x1')}/{image}"]
        worst = max(worst, float(np.abs(made[inputs.places(image, made.size, len(values))] - values).max()))
        assert np.linalg.norm(made) == pytest.approx(norm, rel=1e-5, abs=1e-2), image
    agree("preprocessing, network-input units", name, 1e-4, worst)


def test_affine_equals_keras() -> None:
    """Keras' matrix has the axes swapped: its tx and zx act on columns, ty and zy on rows."""
    photo = inputs.photos()["square"].astype(np.float32)
    maps = inputs.affine_maps(photo.shape[0])
    theta, tx, ty, shear, zx, zy, across, down = torch.tensor(maps, dtype=torch.float32).T
    made = affine(torch.from_numpy(photo).expand(len(maps), -1, -1, -1), theta, ty, tx, shear, zy, zx)
    worst = 0.0
    for number, image in enumerate(made):
        flips = [axis for axis, flip in ((0, down[number]), (1, across[number])) if flip]
        mean, *values = golden("images")["maps"][number]
        result = image.flip(flips)
        at = torch.from_numpy(inputs.places(f"map {number}", result.numel(), len(values)))
        worst = max(worst, float(np.abs(result.reshape(-1)[at].numpy() - values).max()), abs(float(result.mean()) - mean))
    agree("affine map, grey levels of 255", "48 maps", 0.05, worst)


# Losses -------------------------------------------------------------------------------------------------------------------


@mostly_long("number", range(len(inputs.PLATEAUS)), 0)
def test_plateau_lr_equals_keras(number: int) -> None:
    settings = inputs.PLATEAUS[number]
    other = []
    for series, (losses, epochs) in enumerate(zip(inputs.loss_series(), decisions()["plateaus"][number], strict=True)):
        ours = Plateau(inputs.RATE, settings["factor"], settings["patience"], settings["min_delta"], settings["min_lr"])
        rate = inputs.RATE
        for epoch, loss in enumerate(losses, 1):
            rate = max(rate * settings["factor"], settings["min_lr"]) if epoch in epochs else rate
            if ours.update(loss) != pytest.approx(rate, rel=1e-6):
                other.append(series)
                break
    agree("series whose rate differs, of 1,000", f"plateau {number + 1}", 0, len(other))


def test_early_stopping_equals_keras() -> None:
    other = []
    for series, (losses, expected) in enumerate(zip(inputs.loss_series(), decisions()["stops"], strict=True)):
        ours = EarlyStop(inputs.PATIENCE)
        stopped = next((epoch for epoch, loss in enumerate(losses, 1) if ours.update(loss)), 0)
        other += [series] if stopped != expected else []
    agree("series whose end differs, of 1,000", "early stopping", 0, len(other))


# Tutorial 000, the log of its last run: validation losses of epochs 1 to 50.
PRINTED = """
4.3790 3.5982 3.3251 2.8175 2.9204 2.6970 3.2644 2.8043 2.9239 2.7656
2.7274 2.6087 2.7734 2.7223 2.9778 2.8415 3.0142 2.6681 2.6428 2.8702
2.6816 2.8195 2.6759 2.6260 2.6285 2.5984 2.5893 2.5752 2.6136 2.5989
2.6105 2.6656 2.5800 2.6696 2.6434 2.6038 2.6679 2.6872 2.6939 2.6655
2.6670 2.6755 2.6720 2.6680 2.6844 2.6989 2.6838 2.6862 2.6988 2.6801
"""


def test_plateau_lr_reproduces_the_log_of_tutorial_000() -> None:
    settings = load("annotated").schedule
    plateau = Plateau(inputs.RATE, settings.factor, settings.patience, settings.threshold, settings.floor)
    rates = [inputs.RATE, *(plateau.update(float(loss)) for loss in PRINTED.split())][:50]
    assert rates == pytest.approx([1e-2] * 22 + [1e-3] * 16 + [1e-4] * 10 + [1e-5] * 2)


# Splits -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "files"), [("annotated", inputs.class_files()), ("cats-dogs", inputs.labelled_files())])
def test_validation_split_equals_keras(name: str, files: list[str], tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    recipe = load(name)
    result = split(open_table(tmp_path), recipe.data)
    held_out = sorted(result.images[i] for i in result.rows("val"))
    agree("files that validate on one side alone", name, 0, len({*held_out} ^ {*decisions()["held out"][recipe.data.split]}))
    assert result.counts() == {"train": len(files) - len(held_out), "val": len(held_out)}


@pytest.mark.parametrize("name", ["cifar10", "cifar10-1x1"])
def test_cifar10_validation_split_is_the_first_5000(name: str) -> None:
    """As in the code of tutorials 002 and 003; their text says the last photos, which are `data.split = "last"`."""
    splits = np.array(["train"] * 50_000 + ["test"] * 10_000)
    table = Table("cifar10", ("a", "b"), [str(i) for i in range(60_000)], np.arange(60_000) % 2, splits)
    result = split(table, load(name).data)
    assert np.array_equal(result.rows("val"), np.arange(5_000))
    assert result.counts() == {"train": 45_000, "val": 5_000, "test": 10_000}
    by_text = split(table, load(name).with_settings({"data.split": "last"}).data)
    assert np.array_equal(by_text.rows("val"), np.arange(45_000, 50_000))
    assert by_text.counts() == result.counts()
