"""Blurred, dark, over-exposed and elongated photos are found at any contrast; sharp photos and small images are not blamed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

import alexnet
from alexnet.data.check import check_decoded
from alexnet.data.dataset import Dataset
from alexnet.data.decode_worker import make_thumbnail
from alexnet.data.quality import SIDE, SMALLEST, Quality, measure, quality_problems, size_problems
from alexnet.data.table import Table


def squares(side: int = SIDE, seed: int = 0, low: int = 0, high: int = 230) -> Image.Image:
    """Return an image of random squares, whose edges are steps."""
    small = np.random.default_rng(seed).integers(low, high + 1, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.NEAREST)


def measured(image: Image.Image) -> Quality:
    return measure(image, make_thumbnail(image))


def kinds(image: Image.Image, mode: str = "RGB") -> list[str]:
    return [kind for kind, _ in quality_problems(measured(image), mode)]


def test_sharpness_of_a_step_and_of_a_ramp() -> None:
    levels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    levels[: SIDE // 2, : SIDE // 2] = levels[SIDE // 2 :, SIDE // 2 :] = 200
    assert measured(Image.fromarray(levels))["sharpness"] == 2
    ramp = np.broadcast_to(np.add.outer(np.arange(SIDE), np.arange(SIDE))[:, :, None], levels.shape).astype(np.uint8)
    assert measured(Image.fromarray(ramp))["sharpness"] == 0
    assert measured(Image.new("RGB", (SIDE, SIDE), "grey"))["sharpness"] is None


@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([SIDE, 2 * SIDE, 200]), st.sampled_from([0.6, 0.4, 0.25]))
def test_blur_is_found_at_any_size_and_contrast(seed: int, side: int, contrast: float) -> None:
    image = squares(side, seed).point([round(100 + level * contrast) for level in range(256)] * 3)
    assert kinds(image) == []
    soft = image.filter(ImageFilter.GaussianBlur(2 * side / SIDE))
    assert kinds(soft) == ["blur"]
    assert measured(image)["sharpness"] > 1.2 > 0.8 > measured(soft)["sharpness"]  # type: ignore[operator]


@pytest.mark.parametrize("axis", [0, 1])
def test_shake_in_one_direction_is_blur(axis: int) -> None:
    levels = np.asarray(squares(), dtype=np.float32)
    shaken = np.average([np.roll(levels, shift, axis) for shift in range(15)], axis=0, weights=np.hanning(17)[1:-1])
    assert kinds(Image.fromarray(shaken.astype(np.uint8))) == ["blur"]


def test_exposure() -> None:
    assert kinds(squares(low=0, high=90)) == ["dark"]
    assert kinds(squares(low=0, high=120)) == []
    blue = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    blue[:, :, 2] = np.asarray(squares())[:, :, 2]
    assert kinds(Image.fromarray(blue)) == [], "a blue light is not dark, though its grey level is"
    light = squares().point([min(255, 4 * level) for level in range(256)] * 3)
    assert kinds(light) == ["over-exposed"]
    ground = Image.new("RGB", (SIDE, SIDE), "white")
    ground.paste(squares(SIDE // 2), (SIDE // 4, SIDE // 4))
    assert kinds(ground) == [], "on white ground"


def test_small_images_are_judged_by_brightness_only() -> None:
    for make, kind in (
        (lambda side: squares(side).filter(ImageFilter.GaussianBlur(4)), "blur"),
        (lambda side: squares(side, low=250, high=255), "over-exposed"),
    ):
        assert kind in kinds(make(SMALLEST))
        assert kinds(make(SMALLEST - 1)) == []
    assert kinds(squares(8, high=40)) == ["dark"]


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_elongated(width: int, height: int) -> None:
    found = list(size_problems(width, height))
    assert bool(found) == (max(width, height) > 3 * min(width, height))
    assert found == list(size_problems(width, height))
    assert list(size_problems(900, 200)) == [("elongated", "900x200: the middle 22% are used")]


def test_check_finds_bad_photos(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(6):
            squares(100, 10 * ord(label) + i).save(tmp_path / label / f"{i}.png")
    a = tmp_path / "a"
    squares(100, 1).filter(ImageFilter.GaussianBlur(3)).save(a / "soft.png")
    squares(100, 2, high=60).save(a / "night.png")
    squares(100, 3, low=252, high=255).save(a / "constant.png")
    squares(100, 3, low=40).point([min(255, 4 * level) for level in range(256)] * 3).save(a / "snow.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    squares(100, 4).resize((400, 100), Image.Resampling.NEAREST).save(a / "long.jpg", exif=exif)
    found = [(problem.kind, problem.image, problem.detail) for problem in alexnet.check(tmp_path).problems]
    assert [(kind, image) for kind, image, _ in found] == [
        ("orientation", "a/long.jpg"),
        ("elongated", "a/long.jpg"),
        ("dark", "a/night.png"),
        ("over-exposed", "a/snow.png"),
        ("blur", "a/soft.png"),
        ("constant", "a/constant.png"),
    ]
    assert found[1][2] == "100x400: the middle 25% are used"


def test_check_of_decoded_images_finds_bad_photos() -> None:
    images = [squares(SIDE, i) for i in range(6)]
    images[1], images[4] = squares(SIDE, 1, high=60), images[4].filter(ImageFilter.GaussianBlur(3))
    targets, splits = np.arange(6) // 3, np.full(6, "train")
    table = Table("images", ("a", "b"), [f"{i}" for i in range(6)], targets, splits)
    levels = [np.asarray(image) for image in images]
    dataset = Dataset(table, SimpleNamespace(image=levels.__getitem__))  # type: ignore[arg-type]
    kinds = [(problem.kind, problem.image) for problem in check_decoded(dataset).problems if problem.image]
    assert kinds == [("dark", "1"), ("blur", "4")]
