"""Preprocessing from file to network input, compared with Pillow and NumPy in float64."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from proof.pictures import picture
from scipy.special import softmax

import alexnet
from alexnet.data import decode
from alexnet.data.cache import CachedImages, open_cache
from alexnet.data.decode import stored_pixels
from alexnet.data.preprocessing import fit_image, pixels, to_input
from alexnet.data.sources import open_table
from alexnet.recipe import Preprocessing, load
from alexnet.training import train as training
from conftest import TINY, assert_near, make_preprocessing

Floats = NDArray[np.float64]


# The reference


def weights(size: int, new_size: int, preprocessing: Preprocessing) -> Floats:
    """Return the `new_size` x `size` matrix that scales an axis, with half-pixel centres."""
    scale = size / new_size
    centres, at = (np.arange(new_size)[:, None] + 0.5) * scale, np.arange(size)[None] + 0.5
    if preprocessing.resize == "nearest":
        return (np.floor(centres) == at - 0.5).astype(np.float64)
    reach = max(1.0, scale) if preprocessing.antialias else 1.0
    result = np.maximum(0, 1 - np.abs(at - centres) / reach)
    return result / result.sum(1, keepdims=True)


def scaled(images: Floats, preprocessing: Preprocessing) -> Floats:
    """Scale N H W 3 to N I I 3."""
    down, across = (weights(size, preprocessing.input, preprocessing) for size in images.shape[1:3])
    return np.einsum("ih,nhwc,jw->nijc", down, images, across, optimize=True)


def prepared(images: NDArray[Any], preprocessing: Preprocessing) -> Floats:
    """Return the network's input, N 3 I I, for stored images, N S S 3, with the steps in the order of `[images]`."""
    x = images.astype(np.float64)
    if preprocessing.mean == "image":
        x = x - preprocessing.mean_image
    if preprocessing.mean == "each":
        x = x - x.mean((1, 2, 3), keepdims=True)
        x = x / np.maximum(x.std((1, 2, 3), keepdims=True), 1 / np.sqrt(x[0].size))
    if preprocessing.crop is not None:
        x = centre(x, preprocessing.crop)
    if preprocessing.mean == "image-centre":
        x = x - centre(preprocessing.mean_image[None], x.shape[1])
    if preprocessing.mean != "each":
        x = x * preprocessing.value_range / 255
    if not isinstance(preprocessing.mean, str):
        x = x - np.array(preprocessing.mean)
    if not isinstance(preprocessing.std, str):
        x = x / np.array(preprocessing.std)
    if preprocessing.horizontal_flip:
        x = x[:, :, ::-1]
    return scaled(x + preprocessing.brightness, preprocessing).transpose(0, 3, 1, 2)


def assert_prepared(result: Any, expected: Any, images: NDArray[Any], preprocessing: Preprocessing) -> None:
    """Compare inputs: float32 rounds the positions of pixels, so values may differ by a fraction of the largest one."""
    unscaled = prepared(
        images,
        preprocessing.model_copy(
            update={
                "crop": None,
                "mean": "image" if preprocessing.mean == "image-centre" else preprocessing.mean,
                "input": images.shape[1],
            }
        ),
    )
    assert np.shape(result) == np.shape(expected)
    assert np.abs(np.asarray(result) - np.asarray(expected)).max() <= 1e-4 * (1 + np.abs(unscaled).max())


def centre(images: NDArray[Any], size: int) -> NDArray[Any]:
    edge = (images.shape[1] - size) // 2
    return images[:, edge : edge + size, edge : edge + size]


def no_ties(size: int, new_size: int) -> bool:
    """Return whether nearest neighbours are unambiguous: no new centre falls midway between two pixels."""
    return all((2 * i + 1) * size % (2 * new_size) for i in range(new_size))


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.uint8], Preprocessing]:
    """Images of one size, and any preprocessing for them."""
    side = draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    images = rng.integers(0, 256, (draw(st.integers(1, 3)), side, side, 3), dtype=np.uint8)
    if draw(st.booleans()):
        images[0] = 17  # zero standard deviation
    mean = draw(st.sampled_from([(0.0, 0.0, 0.0), (0.3, 0.5, -0.1), "image", "image-centre", "each"]))
    crop, size = draw(st.none() | st.integers(1, side)), draw(st.integers(1, 30))
    return images, make_preprocessing(
        cache_size=side,
        crop=crop,
        value_range=draw(st.sampled_from([1, 255])),
        mean=mean,
        std="each" if mean == "each" else draw(st.sampled_from([(1.0, 1.0, 1.0), (0.2, 0.3, 60.0)])),
        horizontal_flip=draw(st.booleans()),
        brightness=draw(st.sampled_from([0.0, 0.2])),
        input=size,
        resize=draw(st.sampled_from(["nearest", "bilinear"] if no_ties(crop or side, size) else ["bilinear"])),
        antialias=draw(st.booleans()),
        mean_image=rng.uniform(0, 255, (side, side, 3)).astype(np.float32),
    )


@given(cases())
@settings(max_examples=80)
def test_network_input_equals_numpy(case: tuple[NDArray[np.uint8], Preprocessing]) -> None:
    images, preprocessing = case
    assert_prepared(to_input(torch.from_numpy(images), preprocessing), prepared(images, preprocessing), images, preprocessing)


def test_per_image_std_has_the_minimum_of_tensorflow() -> None:
    pixel = torch.tensor([17, 17, 18], dtype=torch.uint8).view(1, 1, 1, 3)  # standard deviation 0.47, below 1 / sqrt(3)
    result = to_input(pixel, make_preprocessing(cache_size=1, input=1, mean="each", std="each"))
    assert_near(result.flatten(), np.array([-1, -1, 2]) / 3 * np.sqrt(3))


@pytest.mark.parametrize("mean", ["each", (0.5, 0.5, 0.5)])
def test_no_image(mean: Any) -> None:
    """A batch of files none of which can be read is empty."""
    images = make_preprocessing(mean=mean, std="each" if mean == "each" else (1.0, 1.0, 1.0))
    assert to_input(torch.empty((0, 8, 8, 3), dtype=torch.uint8), images).shape == (0, 3, 8, 8)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.booleans(), st.sampled_from(["crop", "stretch"]))
@settings(max_examples=60)
def test_full_images_resize_equals_numpy(height: int, width: int, size: int, antialias: bool, fit: str) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    preprocessing = make_preprocessing(cache_size="full", fit=fit, input=size, antialias=antialias)
    side, square = min(height, width), image
    if fit == "crop":
        square = image[(height - side) // 2 :][:side, (width - side) // 2 :][:, :side]
    result = fit_image(image, preprocessing)
    assert result.dtype == np.float32
    assert_near(result, scaled(square[None].astype(np.float64), preprocessing)[0])


@pytest.mark.parametrize("size", [(60, 20), (20, 60), (31, 47)])
def test_antialias_equals_pillow(size: tuple[int, int]) -> None:
    image = np.asarray(picture(2, 0, size))
    result = fit_image(image, make_preprocessing(cache_size="full", fit="stretch", input=24))
    for i in range(3):
        channel = Image.fromarray(image[..., i].astype(np.float32))
        assert_near(result[..., i], channel.resize((24, 24), Image.Resampling.BILINEAR))


# From file to stored image


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
@settings(max_examples=60)
def test_fit_torchvision_equals_resize_and_centre_crop(width: int, height: int, side: int) -> None:
    """As in torchvision 0.29, transforms/functional.py, without its library; `make prove-import` compares with that."""
    image = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))
    short, long = min(width, height), max(width, height)
    new_long = int(side * long / short)  # _compute_resized_output_size
    size = (side, new_long) if width <= height else (new_long, side)
    left, top = (round((length - side) / 2.0) for length in size)  # center_crop
    expected = np.asarray(image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + side, top + side)))
    found = stored_pixels(image, side, "torchvision", "bilinear", False)
    np.testing.assert_array_equal(found, expected)


def test_fit_torchvision_of_an_extremely_long_image_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 700, 3), np.uint8))
    whole = stored_pixels(image, 64, "torchvision", "bilinear", False).astype(int)
    monkeypatch.setattr(decode, "LONGEST", 100)
    assert np.abs(stored_pixels(image, 64, "torchvision", "bilinear", False) - whole).max() <= 1
    monkeypatch.undo()
    line = Image.new("RGB", (20_000_000, 1))  # whole, it would take 5 TB
    assert stored_pixels(line, 256, "torchvision", "bilinear", False).shape == (256, 256, 3)


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (200, 100)])
def test_fit_crop_equals_numpy(size: tuple[int, int], tmp_path: Path) -> None:
    image = picture(0, 1, size)
    image.save(tmp_path / "p.png")
    width, height = (side * 32 // min(size) for side in size)
    left, top = (width - 32) // 2, (height - 32) // 2
    expected = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
    result = stored_pixels(tmp_path / "p.png", **make_preprocessing(cache_size=32).decode_options())
    assert np.array_equal(result, np.asarray(expected))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
@settings(max_examples=30)
def test_nearest_resize(width: int, height: int, side: int) -> None:
    assume(no_ties(width, side) and no_ties(height, side))
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows, columns = (((np.arange(side) + 0.5) * size / side).astype(int) for size in (height, width))
    preprocessing = make_preprocessing(cache_size=side, fit="stretch", filter="nearest")
    result = stored_pixels(image, **preprocessing.decode_options())
    assert np.array_equal(result, image[rows][:, columns])


SIZES = {"one": (1, 1), "tall": (1, 50), "wide": (50, 1), "photo": (37, 23), "square": (40, 40)}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images of many sizes, one of them grey."""
    root = tmp_path_factory.mktemp("mixed") / "mixed"
    for kind, label in enumerate(("across", "down")):
        (root / label).mkdir(parents=True)
        for i, (name, size) in enumerate(SIZES.items()):
            for copy in range(3):
                picture(kind, 10 * i + copy, size).convert("L" if copy == 2 else "RGB").save(root / label / f"{name}{copy}.png")
    return root


def test_cache_of_full_images_is_memory_mapped(mixed: Path, tmp_path: Path) -> None:
    table = open_table(mixed)
    result = open_cache(table, make_preprocessing(cache_size="full"), 2).pixels
    assert isinstance(result, CachedImages)
    (part,) = result.parts
    assert isinstance(part.pixels.memory.base.base, np.memmap)  # type: ignore[union-attr]
    assert not part.pixels.memory.flags.writeable
    assert len(result) == len(table)
    for row, name in enumerate(table.images):
        expected = np.asarray(Image.open(mixed / name).convert("RGB"))
        assert np.array_equal(result.image(row), expected), name
    assert part.pixels.memory.size == sum(3 * w * h for w, h in SIZES.values()) * 6


def test_full_images_in_batches_without_warning(mixed: Path) -> None:
    table, preprocessing = open_table(mixed), make_preprocessing(cache_size="full", fit="stretch", input=20)
    result = open_cache(table, preprocessing, 2).pixels
    rows = np.array([7, 0, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = result.take(rows)
    assert batch.shape == (3, 20, 20, 3)
    for image, row in zip(batch, rows, strict=True):
        assert np.array_equal(image, pixels(mixed / table.images[row], preprocessing))


def test_full_images_after_a_skipped_file(mixed: Path, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i, size in enumerate([(3, 5), (9, 2), (4, 4)]):
            picture(0, i, size).save(tmp_path / label / f"{i}.png")
    (tmp_path / "a" / "1.png").write_text("broken")
    table = open_table(tmp_path)
    cache = open_cache(table, make_preprocessing(cache_size="full"), 2)
    assert [skipped.image for skipped in cache.skipped] == ["a/1.png"]
    for position, row in enumerate(cache.rows):
        assert np.array_equal(cache.pixels.image(position), np.asarray(Image.open(tmp_path / table.images[row])))


# Training, evaluation and prediction get the same input

SETTINGS: dict[str, dict[str, Any]] = {
    "mean image, random crops": {"cache_size": 48, "crop": 40, "value_range": 255, "mean": "image", "std": 60.0},
    "centre of the mean image": {"cache_size": 48, "crop": 40, "mean": "image-centre", "std": "channels"},
    "full images stretched": {"cache_size": "full", "fit": "stretch", "mean": "one", "std": "one", "horizontal_flip": True},
    "full images, mean image": {"cache_size": "full", "mean": "image", "std": "one", "antialias": False, "brightness": 0.1},
    "each by itself": {"cache_size": 32, "mean": "each", "std": "each", "resize": "nearest", "brightness": 0.2},
}
RANDOM = {"augment.rotation": 30.0, "augment.zoom": [0.8, 1.5], "augment.vertical_flip": True, "augment.horizontal_flip": True}


@pytest.mark.parametrize("name", SETTINGS)
def test_evaluate_and_predict_input_equals_numpy(name: str, mixed: Path, tmp_path: Path) -> None:
    images_settings = {f"images.{key}": value for key, value in SETTINGS[name].items()}
    noise = {} if "each" in name else {"augment.colour_noise": 0.1}
    random = {**RANDOM, **noise, "augment.crop": "crop" in SETTINGS[name], "augment.shift": 0.1}
    extra = {"train.epochs": 1, "train.batch_size": 8, "train.precision": "float32", "data.dataset": str(mixed)}
    training.start(
        load("fast").with_settings({**TINY, **extra, **images_settings, **random}), tmp_path / "run", "cpu", time.monotonic()
    )
    run = alexnet.load(tmp_path / "run")
    dataset, _ = run.dataset(split="test")
    train, test, preprocessing = dataset.images("train"), dataset.images("test"), run.config.preprocessing
    if preprocessing.mean in ("image", "image-centre"):
        seen = np.stack([pixels(mixed / image, preprocessing) for image in dataset.names("train")]).astype(np.float64)
        assert preprocessing.mean_image is not None
        assert len(seen) == len(train) == 20
        assert_near(preprocessing.mean_image, seen.mean(0), 1e-6)
        saved = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")["mean_image"].numpy()
        assert saved.tobytes() == preprocessing.mean_image.tobytes()
    inputs = torch.from_numpy(
        prepared(np.stack([pixels(mixed / image, preprocessing) for image in dataset.names("test")]), preprocessing)
    ).float()
    with torch.inference_mode():
        logits = run.network(inputs).numpy()
    evaluation = run.evaluate()
    assert evaluation.loss == run.summary["test"]["loss"]
    assert_near(evaluation.logits, logits, 1e-3)
    expected = softmax(evaluation.logits.astype(np.float64) / evaluation.temperature, axis=1)
    answers = run.predict([mixed / image for image in dataset.names("test")])
    for answer, row in zip(answers, expected, strict=True):
        result = {entry["label"]: entry["probability"] for entry in answer["predictions"]}
        assert [result[label] for label in run.labels] == pytest.approx(row, abs=1e-5)
    assert len(test) == len(answers)


def test_array_of_wrong_shape_or_dtype_is_refused(trained: alexnet.Run) -> None:
    good = np.zeros((9, 8, 3), np.uint8)
    wrong = [good[..., 0], good[..., :1], np.zeros((9, 8, 4), np.uint8), good.astype(np.float32), good[:0]]
    answers = trained.predict([good, *wrong, good])
    assert "predictions" in answers[0]
    assert answers[-1] == answers[0]
    for answer, array in zip(answers[1:-1], wrong, strict=True):
        shape = "x".join(map(str, array.shape))
        assert answer["error"] == f"an array of {array.dtype}, {shape}, but should be uint8, H x W x 3"
