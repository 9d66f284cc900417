"""Augmentation: crops, flips and the affine map compared with NumPy and SciPy in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

import alexnet
from alexnet.data.augment import DRAWS, training_input
from alexnet.data.batches import SplitImages, batch_bounds, epoch_batches
from alexnet.data.geometry import affine
from alexnet.data.pixels import Pixels
from alexnet.network.alexnet import AlexNet
from alexnet.recipe import Augment
from conftest import SHORT, assert_near, make_preprocessing

Floats = NDArray[np.float64]


def places(side: int, size: int, draws: torch.Tensor, **changes: object) -> NDArray[np.int64]:
    """Return N 2 x `size`: the row and column of the image that each row and column of its crop comes from."""
    at = torch.arange(side, dtype=torch.uint8)
    images = torch.stack((*torch.meshgrid(at, at, indexing="ij"), torch.zeros(side, side, dtype=torch.uint8)), -1)
    preprocessing = make_preprocessing(cache_size=side, crop=size, input=size)
    x = training_input(
        images.expand(len(draws), -1, -1, -1), draws, preprocessing, Augment(**{"horizontal_flip": False, **changes})
    )
    assert x.shape == (len(draws), 3, size, size)
    return torch.stack((x[:, 0, :, 0], x[:, 1, 0, :]), 1).long().numpy()


@given(st.integers(1, 30), st.data())
@settings(max_examples=40)
def test_random_crops_are_uniform_and_inside_the_image(side: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, side))
    number = side - size + 1
    draws = torch.rand(4 * number + 2, len(DRAWS))
    even = (torch.arange(4 * number) + 0.5) / (4 * number)
    draws[:-2, DRAWS.index("crop_down")] = even
    draws[:-2, DRAWS.index("crop_right")] = even.flip(0)
    draws[-2], draws[-1] = 0.0, 1 - 2**-24
    result = places(side, size, draws, crop=True)
    for axis in range(2):
        starts = result[:, axis, 0]
        assert (result[:, axis] == starts[:, None] + np.arange(size)).all()
        assert np.bincount(starts[:-2], minlength=number).tolist() == [4] * number
        assert (starts[-2], starts[-1]) == (0, number - 1)
    still = places(side, size, draws)
    assert (still[:, :, 0] == (side - size) // 2).all(), "without augment.crop it is the centre"


def test_horizontal_and_vertical_flips_are_independent_halves() -> None:
    draws = torch.rand(400, len(DRAWS))
    draws[:, DRAWS.index("horizontal_flip")] = (torch.arange(400) + 0.5) / 400
    draws[:, DRAWS.index("vertical_flip")] = (torch.arange(400) % 20 + 0.5) / 20
    result = places(9, 9, draws, horizontal_flip=True, vertical_flip=True)
    turned = result[:, :, 0] == 8
    assert np.array_equal(result, np.where(turned[..., None], np.arange(9)[::-1], np.arange(9)))
    assert [int((turned == pair).all(1).sum()) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))] == [100] * 4
    assert not (places(9, 9, draws)[:, :, 0] == 8).any()


@given(st.integers(1, 80), st.integers(1, 9), st.integers(1, 30), st.integers(0, 5))
@settings(max_examples=30)
def test_images_together_share_crop_and_flip_for_any_batches(count: int, together: int, batch: int, epoch: int) -> None:
    images = SplitImages(
        Pixels(np.zeros(count * 3, np.uint8), np.ones((count, 2), int), make_preprocessing(cache_size=1)),
        *[np.arange(count)] * 2,
    )

    def drawn(cut: list[tuple[int, int]], together: int) -> NDArray[np.float32]:
        return np.concatenate([b.draws for b in epoch_batches(images, cut, 0, epoch, together=together) if b.draws is not None])

    alone = drawn([(0, count)], 1)
    for cut in (batch_bounds(count, batch, "short"), batch_bounds(count, batch, "even")):
        result = drawn(cut, together)
        for i, name in enumerate(DRAWS):
            shared = name in ("horizontal_flip", "crop_down", "crop_right")
            first = np.arange(count) // together * together if shared else np.arange(count)
            assert np.array_equal(result[:, i], alone[first, i]), name


def test_augmentation_does_not_depend_on_the_precision(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, seen = AlexNet.forward, dict[str, torch.Tensor]()

    def recording(self: AlexNet, x: torch.Tensor, upscale: int = 1) -> torch.Tensor:
        if self.training:
            seen.setdefault(precision, x)
        return forward(self, x, upscale)

    monkeypatch.setattr(AlexNet, "forward", recording)
    changes = {"augment.rotation": 30, "augment.area": (0.3, 1.0), "augment.contrast": 0.5, "train.epochs": 1}
    for precision in ("float32", "bfloat16"):
        settings = {**SHORT, **changes, "train.precision": precision}
        alexnet.train(photos, out=tmp_path / precision, settings=settings)
    assert torch.equal(seen["bfloat16"], seen["float32"])


def test_augmentation_does_not_depend_on_the_batch() -> None:
    changes = Augment(
        crop=True, horizontal_flip=True, vertical_flip=True, shift=0.1, rotation=30, translation=0.2, shear=5, zoom=(0.8, 1.5),
        colour_noise=0.1, colour_axes=((0.1, 0, 0), (0, 0.2, 0), (0, 0.1, 0.3)), colour_shrink=True,
    )  # fmt: skip
    images, draws = torch.randint(0, 256, (12, 20, 20, 3), dtype=torch.uint8), torch.rand(12, len(DRAWS))
    preprocessing = make_preprocessing(cache_size=20, crop=16, input=16, mean=(100.0, 110.0, 120.0))
    whole = training_input(images, draws, preprocessing, changes)
    parts = [training_input(images[a:b], draws[a:b], preprocessing, changes) for a, b in ((0, 1), (1, 7), (7, 12))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-3)


# The affine map


def transformed(image: NDArray[Any], **changes: float) -> Floats:
    names = ("rotation", "down", "right", "shear", "zoom_down", "zoom_right")
    values = {**dict.fromkeys(names, 0.0), "zoom_down": 1.0, "zoom_right": 1.0, **changes}
    return affine(torch.from_numpy(image[None]), *(torch.tensor([values[name]]) for name in names))[0].double().numpy()


def noise(side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("side", [1, 2, 7, 16, 227])
def test_affine_without_changes_is_the_identity(side: int) -> None:
    assert_near(transformed(noise(side)), noise(side))


@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 16))
@settings(max_examples=30)
def test_affine_translation_repeats_the_edge(down: int, right: int, side: int) -> None:
    rows, columns = (np.clip(np.arange(side) + by, 0, side - 1) for by in (down, right))
    assert_near(transformed(noise(side), down=down, right=right), noise(side)[rows][:, columns])


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_affine_rotation_equals_rot90(turns: int) -> None:
    expected = [np.rot90(noise(9), sign * turns).astype(float) for sign in (1, -1)]
    result = transformed(noise(9), rotation=90.0 * turns)
    assert min(np.abs(result - image).max() for image in expected) < 0.05


def test_affine_zoom_of_one_axis_keeps_the_other() -> None:
    image = noise(9)
    for zoom in (2.0, 0.5):
        at = np.clip((np.arange(9) - 4) * zoom + 4, 0, 8)
        low = np.floor(at).astype(int).clip(0, 7)
        share = (at - low)[:, None, None]
        assert_near(transformed(image, zoom_down=zoom), image[low] * (1 - share) + image[low + 1] * share)
        turned = image.transpose(1, 0, 2)
        assert_near(transformed(image, zoom_right=zoom), transformed(turned, zoom_down=zoom).transpose(1, 0, 2))


@given(st.floats(-180, 180), st.floats(-9, 9), st.floats(-9, 9), st.floats(-60, 60), st.floats(0.3, 3), st.floats(0.3, 3))
@settings(max_examples=40)
def test_affine_equals_scipy(
    rotation: float, down: float, right: float, shear: float, zoom_down: float, zoom_right: float
) -> None:
    image, side = noise(11), 11
    turn, slant = np.radians([rotation, shear])
    transform = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    transform = (
        transform @ [[1, 0, down], [0, 1, right], [0, 0, 1]] @ [[np.cos(slant), 0, 0], [-np.sin(slant), 1, 0], [0, 0, 1]]
    )
    transform = transform @ np.diag([zoom_down, zoom_right, 1])
    at = np.stack([*(np.indices((side, side)) - 5.0), np.ones((side, side))])
    source = np.einsum("ij,jhw->ihw", transform, at)[:2] + 5
    expected = [map_coordinates(image[..., i].astype(float), source, order=1, mode="nearest") for i in range(3)]
    result = transformed(
        image, rotation=rotation, down=down, right=right, shear=shear, zoom_down=zoom_down, zoom_right=zoom_right
    )
    assert_near(result, np.stack(expected, -1), 1e-3)


@given(st.integers(0, 1000), st.floats(0.5, 2.0))
@settings(max_examples=20)
def test_random_affine_stays_within_bounds(seed: int, high: float) -> None:
    """The image holds its own pixel coordinates, so that without rotation rows and columns reveal shift and zoom."""
    ramp = np.repeat(np.arange(64, dtype=np.float32)[:, None], 64, 1)
    image = torch.from_numpy(np.stack([ramp, ramp.T, ramp], -1))[None].expand(50, -1, -1, -1)
    draws = torch.rand(50, len(DRAWS), generator=torch.Generator().manual_seed(seed))
    changes = Augment(horizontal_flip=False, translation=0.1, zoom=(0.5, max(0.5, high)))
    x = training_input(image, draws, make_preprocessing(cache_size=64, input=64), changes)
    for channel in (x[:, 0], x[:, 1].transpose(1, 2)):
        slope = (channel[:, 33, 32] - channel[:, 31, 32]) / 2
        assert (slope >= 0.5 - 1e-3).all()
        assert (slope <= max(0.5, high) + 1e-3).all()
        middle = (channel[:, 31, 32] + channel[:, 32, 32]) / 2
        assert ((middle - 31.5).abs() <= 6.4 + 1e-2).all()
