"""Changes of colour compared with Pillow, and TrivialAugment's operations one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import map_coordinates

from alexnet.data import colour
from alexnet.data.trivial import OPERATIONS, trivial
from conftest import assert_near

ENHANCERS = {
    colour.brighten: ImageEnhance.Brightness,
    colour.contrast: ImageEnhance.Contrast,
    colour.saturate: ImageEnhance.Color,
}
FACTORS = st.floats(0, 2, width=32)


def noise(side: int = 12) -> NDArray[np.uint8]:
    """Return an image with whole grey levels, some of them extreme."""
    image = np.random.default_rng(side).integers(-60, 316, (side, side, 3)).clip(0, 255)
    return image.astype(np.uint8)


@pytest.mark.parametrize("change", ENHANCERS, ids=lambda change: change.__name__)
@given(factor=FACTORS)
@settings(max_examples=30)
def test_enhancements_equal_pillows(change: object, factor: float) -> None:
    """Pillow rounds grey levels, their mean, and the result to whole levels, each of which is at most 1 off."""
    image = noise()
    expected = np.array(ENHANCERS[change](Image.fromarray(image)).enhance(factor)).astype(float)  # type: ignore[index]
    result = change(torch.from_numpy(image[None]).float(), torch.tensor([factor]))[0].numpy()  # type: ignore[operator]
    assert np.abs(result - expected).max() <= 1 + abs(1 - factor)
    exact = change(torch.from_numpy(image[None]).float(), torch.tensor([1.0]))[0].numpy()  # type: ignore[operator]
    assert_near(exact, image, 1e-4)


@pytest.mark.parametrize("change", ENHANCERS, ids=lambda change: change.__name__)
@given(factor=FACTORS)
@settings(max_examples=20)
def test_enhancements_equal_their_formula(change: object, factor: float) -> None:
    x = noise().astype(np.float64)
    grey = (x * [0.299, 0.587, 0.114]).sum(-1, keepdims=True)
    start = {"brighten": 0.0, "contrast": grey.mean(), "saturate": grey}[change.__name__]  # type: ignore[attr-defined]
    expected = (start + factor * (x - start)).clip(0, 255)
    result = change(torch.from_numpy(x[None]).float(), torch.tensor([factor]))[0].numpy()  # type: ignore[operator]
    assert_near(result, expected, 1e-3)


def test_posterize_and_solarize_equal_pillows() -> None:
    image = noise()
    batch = torch.from_numpy(image[None]).float()
    for bits in range(1, 9):
        expected = np.array(ImageOps.posterize(Image.fromarray(image), bits))
        assert np.array_equal(colour.posterize(batch, torch.tensor([float(bits)]))[0].numpy(), expected)
    for threshold in (0, 1, 77, 128, 255, 256):
        expected = np.array(ImageOps.solarize(Image.fromarray(image), threshold))
        assert np.array_equal(colour.solarize(batch, torch.tensor([float(threshold)]))[0].numpy(), expected)
    assert torch.equal(colour.posterize(batch + 0.3, torch.tensor([8.0])), batch + 0.3), "fractions stay without a change"


def draw(operation: str, strength: float = 0.0, direction: float = 0.7) -> dict[str, torch.Tensor]:
    """Return the random numbers that select an operation; `direction` is positive from 0.5 on."""
    number = (list(OPERATIONS).index(operation) + 0.5) / len(OPERATIONS)
    values = {"operation": number, "strength": strength, "direction": direction}
    return {name: torch.tensor([value]) for name, value in values.items()}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_leaves_the_image_at_no_strength(operation: str) -> None:
    image = noise().clip(0, 254)  # solarize at its weakest inverts white alone
    assert_near(trivial(torch.from_numpy(image[None]), draw(operation))[0].numpy(), image, 0.01)


@pytest.mark.parametrize("direction", [0.2, 0.7])
@pytest.mark.parametrize("operation", ["brightness", "contrast", "saturation", "posterize", "solarize"])
@given(strength=st.floats(0, 1, width=32, exclude_max=True))
@settings(max_examples=10)
def test_operations_on_colour_have_the_strengths_of_the_paper(operation: str, direction: float, strength: float) -> None:
    image = noise()
    factor = 1 + (0.99 if direction >= 0.5 else -0.99) * strength
    picture = Image.fromarray(image)
    expected = {
        "brightness": lambda: ImageEnhance.Brightness(picture).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(picture).enhance(factor),
        "saturation": lambda: ImageEnhance.Color(picture).enhance(factor),
        "posterize": lambda: ImageOps.posterize(picture, 8 - round(6 * strength)),
        "solarize": lambda: Image.fromarray(np.where(image >= 255 * (1 - strength), 255 - image, image).astype(np.uint8)),
    }[operation]()
    result = trivial(torch.from_numpy(image[None]), draw(operation, strength, direction))[0].numpy()
    assert np.abs(result - np.array(expected).astype(float)).max() <= 2.01


@pytest.mark.parametrize("direction", [0.2, 0.7])
@pytest.mark.parametrize("operation", ["rotation", "shear_down", "shear_right", "shift_down", "shift_right"])
@given(strength=st.floats(0, 1, width=32, exclude_max=True))
@settings(max_examples=10)
def test_operations_on_shape_equal_scipys(operation: str, direction: float, strength: float) -> None:
    image, side = noise(13), 13
    signed = strength * (1 if direction >= 0.5 else -1)
    turn = np.radians(135 * signed) * (operation == "rotation")
    transform = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0]])
    for name, place, size in (
        *(("shear_down", (0, 1), 0.99), ("shear_right", (1, 0), 0.99)),
        *(("shift_down", (0, 2), side / 7), ("shift_right", (1, 2), side / 7)),
    ):
        transform[place] += size * signed * (operation == name)
    at = np.stack([*(np.indices((side, side)) - 6.0), np.ones((side, side))])
    source = np.einsum("ij,jhw->ihw", transform, at) + 6
    expected = [map_coordinates(image[..., i].astype(float), source, order=1, mode="nearest") for i in range(3)]
    result = trivial(torch.from_numpy(image[None]), draw(operation, strength, direction))[0].numpy()
    assert_near(result, np.stack(expected, -1), 0.01)
