"""From a file to the network's input, against Pillow and NumPy in float64; what is random, and what is not."""

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
from scipy.ndimage import map_coordinates
from scipy.special import softmax

import alexnet
from alexnet.data.augment import DRAWS, affine, training_input
from alexnet.data.batches import Images, batch_cuts, epoch_batches
from alexnet.data.cache import Pixels, cache_folder, open_cache
from alexnet.data.images import Preprocessing, fitted, pixels, stored_pixels, to_input
from alexnet.data.sources import open_table
from alexnet.recipe import Augment, load
from alexnet.training import job
from conftest import TINY, picture

Floats = NDArray[np.float64]


def make_how(**changes: Any) -> Preprocessing:
    return Preprocessing(
        **{"stored": 8, "input": 8, "fit": "crop", "reduced_decode": False, "resize": "bilinear", "levels": 255, **changes}
    )


# The reference


def weights(size: int, wanted: int, how: Preprocessing) -> Floats:
    """Return the `wanted` x `size` matrix that scales an axis, pixel centres at halves."""
    scale = size / wanted
    centres, at = (np.arange(wanted)[:, None] + 0.5) * scale, np.arange(size)[None] + 0.5
    if how.resize == "nearest":
        return (np.floor(centres) == at - 0.5).astype(np.float64)
    reach = max(1.0, scale) if how.antialias else 1.0
    found = np.maximum(0, 1 - np.abs(at - centres) / reach)
    return found / found.sum(1, keepdims=True)


def scaled(images: Floats, how: Preprocessing) -> Floats:
    """Scale N H W 3 to N I I 3."""
    down, across = (weights(size, how.input, how) for size in images.shape[1:3])
    return np.einsum("ih,nhwc,jw->nijc", down, images, across, optimize=True)


def prepared(images: NDArray[Any], how: Preprocessing) -> Floats:
    """Return what the network sees, N 3 I I, of images as stored, N S S 3, in the order of `[images]`."""
    x = images.astype(np.float64)
    if how.mean == "image":
        x = x - how.mean_image
    if how.mean == "each":
        x = x - x.mean((1, 2, 3), keepdims=True)
        x = x / np.maximum(x.std((1, 2, 3), keepdims=True), 1 / np.sqrt(x[0].size))
    if how.crop is not None:
        x = centre(x, how.crop)
    if how.mean == "image-centre":
        x = x - centre(how.mean_image[None], x.shape[1])
    if how.mean != "each":
        x = x * how.levels / 255
    if not isinstance(how.mean, str):
        x = x - np.array(how.mean)
    if not isinstance(how.deviation, str):
        x = x / np.array(how.deviation)
    if how.mirror:
        x = x[:, :, ::-1]
    return scaled(x + how.brightness, how).transpose(0, 3, 1, 2)


def centre(images: NDArray[Any], size: int) -> NDArray[Any]:
    edge = (images.shape[1] - size) // 2
    return images[:, edge : edge + size, edge : edge + size]


def assert_near(found: Any, wanted: Any, share: float = 1e-4) -> None:
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= share * (1 + np.abs(wanted).max())


def no_ties(size: int, wanted: int) -> bool:
    """Tell whether `nearest` has one answer everywhere: no new centre falls between two pixels."""
    return all((2 * i + 1) * size % (2 * wanted) for i in range(wanted))


@st.composite
def ways(draw: st.DrawFn) -> tuple[NDArray[np.uint8], Preprocessing]:
    """Images of one size, and any way to prepare them."""
    side = draw(st.integers(1, 20))
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    images = chance.integers(0, 256, (draw(st.integers(1, 3)), side, side, 3), dtype=np.uint8)
    if draw(st.booleans()):
        images[0] = 17  # no deviation of its own
    mean = draw(st.sampled_from([(0.0, 0.0, 0.0), (0.3, 0.5, -0.1), "image", "image-centre", "each"]))
    crop, size = draw(st.none() | st.integers(1, side)), draw(st.integers(1, 30))
    return images, make_how(
        stored=side,
        crop=crop,
        levels=draw(st.sampled_from([1, 255])),
        mean=mean,
        deviation="each" if mean == "each" else draw(st.sampled_from([(1.0, 1.0, 1.0), (0.2, 0.3, 60.0)])),
        mirror=draw(st.booleans()),
        brightness=draw(st.sampled_from([0.0, 0.2])),
        input=size,
        resize=draw(st.sampled_from(["nearest", "bilinear"] if no_ties(crop or side, size) else ["bilinear"])),
        antialias=draw(st.booleans()),
        mean_image=chance.uniform(0, 255, (side, side, 3)).astype(np.float32),
    )


@given(ways())
@settings(max_examples=80)
def test_the_networks_input_equals_numpy(way: tuple[NDArray[np.uint8], Preprocessing]) -> None:
    images, how = way
    assert_near(to_input(torch.from_numpy(images), how), prepared(images, how))


def test_an_image_nearly_of_one_colour_is_divided_by_the_least_deviation_of_tensorflow() -> None:
    pixel = torch.tensor([17, 17, 18], dtype=torch.uint8).view(1, 1, 1, 3)  # deviation 0.47, below 1 / sqrt(3)
    found = to_input(pixel, make_how(stored=1, input=1, mean="each", deviation="each"))
    assert_near(found.flatten(), np.array([-1, -1, 2]) / 3 * np.sqrt(3))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.booleans(), st.sampled_from(["crop", "stretch"]))
@settings(max_examples=60)
def test_full_images_are_scaled_as_numpy_does(height: int, width: int, size: int, antialias: bool, fit: str) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    how = make_how(stored="full", fit=fit, input=size, antialias=antialias)
    side, square = min(height, width), image
    if fit == "crop":
        square = image[(height - side) // 2 :][:side, (width - side) // 2 :][:, :side]
    found = fitted(image, how)
    assert found.dtype == np.float32
    assert_near(found, scaled(square[None].astype(np.float64), how)[0])


@pytest.mark.parametrize("size", [(60, 20), (20, 60), (31, 47)])
def test_smoothing_is_that_of_pillow_on_each_axis(size: tuple[int, int]) -> None:
    image = np.asarray(picture(2, 0, size))
    found = fitted(image, make_how(stored="full", fit="stretch", input=24))
    for i in range(3):
        channel = Image.fromarray(image[..., i].astype(np.float32))
        assert_near(found[..., i], channel.resize((24, 24), Image.Resampling.BILINEAR))


# From the file to what is stored


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (200, 100)])
def test_crop_is_the_shorter_side_scaled_and_the_centre_cut_out(size: tuple[int, int], tmp_path: Path) -> None:
    image = picture(0, 1, size)
    image.save(tmp_path / "p.png")
    width, height = (side * 32 // min(size) for side in size)
    left, top = (width - 32) // 2, (height - 32) // 2
    wanted = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
    assert np.array_equal(stored_pixels(tmp_path / "p.png", make_how(stored=32)), np.asarray(wanted))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
@settings(max_examples=30)
def test_nearest_takes_the_pixel_at_the_same_place(width: int, height: int, side: int) -> None:
    assume(no_ties(width, side) and no_ties(height, side))
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows, columns = (((np.arange(side) + 0.5) * size / side).astype(int) for size in (height, width))
    found = stored_pixels(image, make_how(stored=side, fit="stretch", filter="nearest"))
    assert np.array_equal(found, image[rows][:, columns])


SIZES = {"one": (1, 1), "tall": (1, 50), "wide": (50, 1), "photo": (37, 23), "square": (40, 40)}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures of all sizes, one of them grey."""
    root = tmp_path_factory.mktemp("mixed") / "mixed"
    for kind, label in enumerate(("across", "down")):
        (root / label).mkdir(parents=True)
        for i, (name, size) in enumerate(SIZES.items()):
            for copy in range(3):
                picture(kind, 10 * i + copy, size).convert("L" if copy == 2 else "RGB").save(root / label / f"{name}{copy}.png")
    return root


def test_full_images_lie_in_the_cache_pixel_for_pixel_memory_mapped(mixed: Path, tmp_path: Path) -> None:
    table = open_table(mixed)
    found = open_cache(table, make_how(stored="full"), 2).pixels
    assert isinstance(found.memory, np.memmap)
    assert not found.memory.flags.writeable
    assert len(found) == len(table)
    for row, name in enumerate(table.images):
        wanted = np.asarray(Image.open(mixed / name).convert("RGB"))
        assert np.array_equal(found.stored(row), wanted), name
    assert found.memory.size == sum(3 * w * h for w, h in SIZES.values()) * 6


def test_full_images_come_as_batches_hold_them_without_a_warning(mixed: Path) -> None:
    table, how = open_table(mixed), make_how(stored="full", fit="stretch", input=20)
    found = open_cache(table, how, 2).pixels
    rows = np.array([7, 0, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = found.take(rows)
    assert batch.shape == (3, 20, 20, 3)
    for image, row in zip(batch, rows, strict=True):
        assert np.array_equal(image, pixels(mixed / table.images[row], how))


def test_a_file_left_out_does_not_move_the_others_of_other_sizes(mixed: Path, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i, size in enumerate([(3, 5), (9, 2), (4, 4)]):
            picture(0, i, size).save(tmp_path / label / f"{i}.png")
    (tmp_path / "a" / "1.png").write_text("broken")
    table = open_table(tmp_path)
    cache = open_cache(table, make_how(stored="full"), 2)
    assert [skipped.image for skipped in cache.skipped] == ["a/1.png"]
    for position, row in enumerate(cache.rows):
        assert np.array_equal(cache.pixels.stored(position), np.asarray(Image.open(tmp_path / table.images[row])))


def test_a_cache_whose_pixels_were_removed_is_made_again(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "swept" / label).mkdir(parents=True)
        picture(0, 0).save(tmp_path / "swept" / label / "0.png")
    table = open_table(tmp_path / "swept")
    before = open_cache(table, make_how(), 1).pixels.take(np.arange(2))
    (data,) = cache_folder().glob("swept-*/*.u8")
    data.unlink()
    assert np.array_equal(open_cache(table, make_how(), 1).pixels.take(np.arange(2)), before)


# Training, evaluation and prediction see the same

WAYS: dict[str, dict[str, Any]] = {
    "mean image, random crops": {"stored": 48, "crop": 40, "levels": 255, "mean": "image", "deviation": 60.0},
    "centre of the mean image": {"stored": 48, "crop": 40, "mean": "image-centre", "deviation": "channels"},
    "full images stretched": {"stored": "full", "fit": "stretch", "mean": "one", "deviation": "one", "mirror": True},
    "full images, mean image": {"stored": "full", "mean": "image", "deviation": "one", "antialias": False, "brightness": 0.1},
    "each by itself": {"stored": 32, "mean": "each", "deviation": "each", "resize": "nearest", "brightness": 0.2},
}
RANDOM = {"augment.rotation": 30.0, "augment.zoom": [0.8, 1.5], "augment.flip": True, "augment.mirror": True}


@pytest.mark.parametrize("name", WAYS)
def test_evaluation_and_prediction_prepare_images_as_numpy_and_nothing_random_touches_them(
    name: str, mixed: Path, tmp_path: Path
) -> None:
    way = {f"images.{key}": value for key, value in WAYS[name].items()}
    noise = {} if "each" in name else {"augment.colour_noise": 0.1}
    random = {**RANDOM, **noise, "augment.crop": "crop" in WAYS[name], "augment.shift": 0.1}
    extra = {"train.epochs": 1, "train.batch": 8, "train.precision": "float32", "data.dataset": str(mixed)}
    job.start(load("fast").with_settings({**TINY, **extra, **way, **random}), tmp_path / "run", "cpu", time.monotonic())
    run = alexnet.load(tmp_path / "run")
    dataset, _ = run.dataset(split="test")
    train, test, how = dataset.images("train"), dataset.images("test"), run.card.preprocessing
    if how.mean in ("image", "image-centre"):
        seen = np.stack([pixels(mixed / image, how) for image in dataset.names("train")]).astype(np.float64)
        assert how.mean_image is not None
        assert len(seen) == len(train) == 20
        assert_near(how.mean_image, seen.mean(0), 1e-6)
        saved = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")["mean_image"].numpy()
        assert saved.tobytes() == how.mean_image.tobytes()
    inputs = torch.from_numpy(prepared(np.stack([pixels(mixed / image, how) for image in dataset.names("test")]), how)).float()
    with torch.inference_mode():
        logits = run.network(inputs).numpy()
    evaluation = run.evaluate()
    assert evaluation.loss == run.summary["test"]["loss"]
    assert_near(evaluation.logits, logits, 1e-3)
    wanted = softmax(evaluation.logits.astype(np.float64) / evaluation.temperature, axis=1)
    answers = run.predict([mixed / image for image in dataset.names("test")])
    for answer, row in zip(answers, wanted, strict=True):
        found = {entry["label"]: entry["probability"] for entry in answer["predictions"]}
        assert [found[label] for label in run.labels] == pytest.approx(row, abs=1e-5)
    assert len(test) == len(answers)


def test_an_array_of_another_form_is_answered_with_what_it_should_be(trained: alexnet.Run) -> None:
    good = np.zeros((9, 8, 3), np.uint8)
    wrong = [good[..., 0], good[..., :1], np.zeros((9, 8, 4), np.uint8), good.astype(np.float32), good[:0]]
    answers = trained.predict([good, *wrong, good])
    assert "predictions" in answers[0]
    assert answers[-1] == answers[0]
    for answer, array in zip(answers[1:-1], wrong, strict=True):
        shape = "x".join(map(str, array.shape))
        assert answer["error"] == f"an array of {array.dtype}, {shape}, but should be uint8, H x W x 3"


# What is random


def places(side: int, size: int, draws: torch.Tensor, **changes: object) -> NDArray[np.int64]:
    """Return N 2 x `size`: which rows and columns of the image each row and column of its crop come from."""
    at = torch.arange(side, dtype=torch.uint8)
    images = torch.stack((*torch.meshgrid(at, at, indexing="ij"), torch.zeros(side, side, dtype=torch.uint8)), -1)
    how = make_how(stored=side, crop=size, input=size)
    x = training_input(images.expand(len(draws), -1, -1, -1), draws, how, Augment(**{"mirror": False, **changes}))
    assert x.shape == (len(draws), 3, size, size)
    return torch.stack((x[:, 0, :, 0], x[:, 1, 0, :]), 1).long().numpy()


@given(st.integers(1, 30), st.data())
@settings(max_examples=40)
def test_every_crop_is_as_likely_as_any_other_and_inside_the_image(side: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, side))
    number = side - size + 1
    draws = torch.rand(4 * number + 2, len(DRAWS))
    even = (torch.arange(4 * number) + 0.5) / (4 * number)
    draws[:-2, DRAWS.index("crop_down")] = even
    draws[:-2, DRAWS.index("crop_right")] = even.flip(0)
    draws[-2], draws[-1] = 0.0, 1 - 2**-24
    found = places(side, size, draws, crop=True)
    for axis in range(2):
        starts = found[:, axis, 0]
        assert (found[:, axis] == starts[:, None] + np.arange(size)).all()
        assert np.bincount(starts[:-2], minlength=number).tolist() == [4] * number
        assert (starts[-2], starts[-1]) == (0, number - 1)
    still = places(side, size, draws)
    assert (still[:, :, 0] == (side - size) // 2).all(), "without augment.crop it is the centre"


def test_half_are_mirrored_and_half_are_flipped_each_on_its_own() -> None:
    draws = torch.rand(400, len(DRAWS))
    draws[:, DRAWS.index("mirror")] = (torch.arange(400) + 0.5) / 400
    draws[:, DRAWS.index("flip")] = (torch.arange(400) % 20 + 0.5) / 20
    found = places(9, 9, draws, mirror=True, flip=True)
    turned = found[:, :, 0] == 8
    assert np.array_equal(found, np.where(turned[..., None], np.arange(9)[::-1], np.arange(9)))
    assert [int((turned == pair).all(1).sum()) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))] == [100] * 4
    assert not (places(9, 9, draws)[:, :, 0] == 8).any()


@given(st.integers(1, 80), st.integers(1, 9), st.integers(1, 30), st.integers(0, 5))
@settings(max_examples=30)
def test_images_together_share_crop_and_mirror_and_nothing_else_however_batches_are_cut(
    count: int, together: int, batch: int, epoch: int
) -> None:
    images = Images(
        Pixels(np.zeros(count * 3, np.uint8), np.ones((count, 2), int), make_how(stored=1)), *[np.arange(count)] * 2
    )

    def drawn(cut: list[tuple[int, int]], together: int) -> NDArray[np.float32]:
        return np.concatenate([b.draws for b in epoch_batches(images, cut, 0, epoch, together=together) if b.draws is not None])

    alone = drawn([(0, count)], 1)
    for cut in (batch_cuts(count, batch, "short"), batch_cuts(count, batch, "even")):
        found = drawn(cut, together)
        for i, name in enumerate(DRAWS):
            shared = name in ("mirror", "crop_down", "crop_right")
            first = np.arange(count) // together * together if shared else np.arange(count)
            assert np.array_equal(found[:, i], alone[first, i]), name


def test_an_image_is_changed_alike_whatever_else_is_in_its_batch() -> None:
    changes = Augment(
        crop=True, mirror=True, flip=True, shift=0.1, rotation=30, translation=0.2, shear=5, zoom=(0.8, 1.5),
        colour_noise=0.1, colour_axes=((0.1, 0, 0), (0, 0.2, 0), (0, 0.1, 0.3)), colour_shrink=True,
    )  # fmt: skip
    images, draws = torch.randint(0, 256, (12, 20, 20, 3), dtype=torch.uint8), torch.rand(12, len(DRAWS))
    how = make_how(stored=20, crop=16, input=16, mean=(100.0, 110.0, 120.0))
    whole = training_input(images, draws, how, changes)
    parts = [training_input(images[a:b], draws[a:b], how, changes) for a, b in ((0, 1), (1, 7), (7, 12))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-3)


# The affine map


def moved(image: NDArray[Any], **changes: float) -> Floats:
    names = ("rotation", "down", "right", "shear", "zoom_down", "zoom_right")
    values = {**dict.fromkeys(names, 0.0), "zoom_down": 1.0, "zoom_right": 1.0, **changes}
    return affine(torch.from_numpy(image[None]), *(torch.tensor([values[name]]) for name in names))[0].double().numpy()


def noise(side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("side", [1, 2, 7, 16, 227])
def test_the_affine_map_of_nothing_is_the_identity(side: int) -> None:
    assert_near(moved(noise(side)), noise(side))


@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 16))
@settings(max_examples=30)
def test_a_shift_takes_pixels_from_that_far_and_repeats_the_edge(down: int, right: int, side: int) -> None:
    rows, columns = (np.clip(np.arange(side) + by, 0, side - 1) for by in (down, right))
    assert_near(moved(noise(side), down=down, right=right), noise(side)[rows][:, columns])


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_those_of_numpy(turns: int) -> None:
    wanted = [np.rot90(noise(9), way * turns).astype(float) for way in (1, -1)]
    found = moved(noise(9), rotation=90.0 * turns)
    assert min(np.abs(found - image).max() for image in wanted) < 0.05


def test_a_zoom_of_one_axis_leaves_the_other() -> None:
    image = noise(9)
    for zoom in (2.0, 0.5):
        at = np.clip((np.arange(9) - 4) * zoom + 4, 0, 8)
        low = np.floor(at).astype(int).clip(0, 7)
        share = (at - low)[:, None, None]
        assert_near(moved(image, zoom_down=zoom), image[low] * (1 - share) + image[low + 1] * share)
        turned = image.transpose(1, 0, 2)
        assert_near(moved(image, zoom_right=zoom), moved(turned, zoom_down=zoom).transpose(1, 0, 2))


@given(st.floats(-180, 180), st.floats(-9, 9), st.floats(-9, 9), st.floats(-60, 60), st.floats(0.3, 3), st.floats(0.3, 3))
@settings(max_examples=40)
def test_the_affine_map_equals_scipy(
    rotation: float, down: float, right: float, shear: float, zoom_down: float, zoom_right: float
) -> None:
    image, side = noise(11), 11
    turn, slant = np.radians([rotation, shear])
    place = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    place = place @ [[1, 0, down], [0, 1, right], [0, 0, 1]] @ [[np.cos(slant), 0, 0], [-np.sin(slant), 1, 0], [0, 0, 1]]
    place = place @ np.diag([zoom_down, zoom_right, 1])
    at = np.stack([*(np.indices((side, side)) - 5.0), np.ones((side, side))])
    source = np.einsum("ij,jhw->ihw", place, at)[:2] + 5
    wanted = [map_coordinates(image[..., i].astype(float), source, order=1, mode="nearest") for i in range(3)]
    found = moved(image, rotation=rotation, down=down, right=right, shear=shear, zoom_down=zoom_down, zoom_right=zoom_right)
    assert_near(found, np.stack(wanted, -1), 1e-3)


@given(st.integers(0, 1000), st.floats(0.5, 2.0))
@settings(max_examples=20)
def test_random_maps_stay_within_the_recipes_bounds(seed: int, high: float) -> None:
    """Of an image of its own coordinates: rotation off, so rows and columns tell shift and zoom."""
    ramp = np.repeat(np.arange(64, dtype=np.float32)[:, None], 64, 1)
    image = torch.from_numpy(np.stack([ramp, ramp.T, ramp], -1))[None].expand(50, -1, -1, -1)
    draws = torch.rand(50, len(DRAWS), generator=torch.Generator().manual_seed(seed))
    changes = Augment(mirror=False, translation=0.1, zoom=(0.5, max(0.5, high)))
    x = training_input(image, draws, make_how(stored=64, input=64), changes)
    for channel in (x[:, 0], x[:, 1].transpose(1, 2)):
        slope = (channel[:, 33, 32] - channel[:, 31, 32]) / 2
        assert (slope >= 0.5 - 1e-3).all()
        assert (slope <= max(0.5, high) + 1e-3).all()
        middle = (channel[:, 31, 32] + channel[:, 32, 32]) / 2
        assert ((middle - 31.5).abs() <= 6.4 + 1e-2).all()
