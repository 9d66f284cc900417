"""Decoding, fitting, and the cache."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from proof.pictures import class_folders, encoded, picture

from alexnet.data.batches import ordered_batches
from alexnet.data.dataset import open_dataset
from alexnet.data.decode import decode, stored_pixels
from alexnet.data.preprocessing import pixels, to_input
from alexnet.data.sources import open_table
from alexnet.errors import DataError, ImageError
from alexnet.recipe import Data, Preprocessing
from conftest import contents

PREPROCESSING = Preprocessing(cache_size=32, input=32, fit="crop", reduced_decode=False, resize="bilinear")

RED = (200, 30, 40)


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("L", 77, "PNG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("I;16", 65535, "PNG", (255, 255, 255)),
        ("I;16", 257 * 100, "TIFF", (100, 100, 100)),
        ("RGBA", (0, 0, 0, 0), "PNG", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 128), "PNG", (255, 127, 127)),
        ("LA", (0, 0), "PNG", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("YCbCr", (76, 85, 255), "JPEG", (254, 0, 0)),
    ],
)
def test_image_mode_to_rgb(tmp_path: Path, mode: str, colour: object, kind: str, expected: tuple[int, ...]) -> None:
    file = tmp_path / "image"
    file.write_bytes(encoded(Image.new(mode, (8, 8), colour), kind))  # type: ignore[arg-type]
    image = decode(file)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= 2


def test_transparent_palette_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "p.png", transparency=0)
    assert decode(tmp_path / "p.png").getpixel((0, 0)) == (255, 255, 255)
    assert decode(tmp_path / "p.png").getpixel((3, 3)) == RED


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), RED).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    assert np.abs(np.asarray(decode(tmp_path / "c.jpg")).astype(int) - RED).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (24, 16), "white")
    upright.paste((255, 0, 0), (0, 0, 8, 8))  # red in the upper left corner
    undo = {
        **{2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM},
        **{5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE},
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "p.jpg", exif=exif, quality=95)
    image = decode(tmp_path / "p.jpg")
    assert image.size == (24, 16)
    red, green, _ = image.getpixel((2, 2))
    assert red > 200 > 60 > green
    assert min(image.getpixel((22, 14))) > 200


def test_animation_gives_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(decode(tmp_path / "a.gif")).astype(int) - RED).max() <= 3


def test_image_format_by_content(tmp_path: Path) -> None:
    (tmp_path / "really.jpg").write_bytes(encoded(Image.new("RGB", (8, 8), RED), "PNG"))
    (tmp_path / "照片.txt").write_bytes(encoded(Image.new("RGB", (8, 8), RED), "PNG"))
    assert decode(tmp_path / "really.jpg").size == decode(tmp_path / "照片.txt").size == (8, 8)


def bad_files(folder: Path) -> dict[str, str]:
    """Write files that are not images; return the expected message for each."""
    jpeg = encoded(picture(0, 0, (200, 200)), "JPEG")
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("not an image at all")
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "cut.png").write_bytes(encoded(picture(0, 0), "PNG")[:600])
    huge = encoded(Image.new("1", (40_000, 10_000)), "PNG")
    (folder / "huge.png").write_bytes(huge)
    return {
        "empty.jpg": "the file is empty",
        "text.png": "not an image",
        "cut.jpg": "truncated",
        "cut.png": "truncated|Truncated",
        "huge.png": "too large to decode",
        "absent.png": "no such file",
    }


def test_no_image_is_refused_with_its_reason(tmp_path: Path) -> None:
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(ImageError, match=reason):
            decode(tmp_path / name)


@pytest.mark.parametrize("size", [(60, 32), (32, 40), (61, 32), (32, 35), (33, 32), (32, 32)])
def test_fit_crop_without_scaling_equals_resampling(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    left, top = (size[0] - 32) / 2, (size[1] - 32) / 2
    expected = image.resize((32, 32), Image.Resampling.BICUBIC, box=(left, top, left + 32, top + 32))
    assert np.array_equal(stored_pixels(image, 32), expected)


def test_fit_crop_and_stretch(tmp_path: Path) -> None:
    image = Image.new("RGB", (96, 32), "black")
    image.paste((255, 255, 255), (32, 0, 64, 32))
    image.save(tmp_path / "wide.png")
    assert pixels(tmp_path / "wide.png", PREPROCESSING).min() == 255
    stretched = pixels(tmp_path / "wide.png", PREPROCESSING.model_copy(update={"fit": "stretch"}))
    assert stretched.shape == (32, 32, 3)
    assert stretched[:, 0].max() == 0
    assert stretched[:, 16].min() == 255


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (1, 1), (33, 2000)])
def test_fit_of_extreme_aspect_ratios(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, RED).save(tmp_path / "odd.png")
    for reduced in (False, True):
        assert (pixels(tmp_path / "odd.png", PREPROCESSING.model_copy(update={"reduced_decode": reduced})) == RED).all()


def test_reduced_decode_is_similar(tmp_path: Path) -> None:
    y, x = np.mgrid[:600, :900]
    smooth = np.stack([127 + 120 * np.sin(x / 90), 127 + 120 * np.cos(y / 70), (x + y) / 6], -1)
    Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(tmp_path / "photo.jpg", quality=95)
    whole = pixels(tmp_path / "photo.jpg", PREPROCESSING).astype(float)
    reduced = pixels(tmp_path / "photo.jpg", PREPROCESSING.model_copy(update={"reduced_decode": True})).astype(float)
    assert np.abs(whole - reduced).mean() < 2


def test_network_input_is_normalised_and_channels_last() -> None:
    preprocessing = PREPROCESSING.model_copy(update={"mean": (0.5, 0.25, 0.0), "std": (0.5, 0.25, 1.0)})
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    x = to_input(images, preprocessing)
    expected = (images.numpy() / 255.0 - preprocessing.mean) / preprocessing.std
    np.testing.assert_allclose(x.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)
    assert x.is_contiguous(memory_format=torch.channels_last)
    larger = to_input(images, preprocessing.model_copy(update={"input": 64}))
    expected_larger = torch.nn.functional.interpolate(
        torch.from_numpy(expected).permute(0, 3, 1, 2), scale_factor=2, mode="bilinear"
    )
    np.testing.assert_allclose(larger.numpy(), expected_larger.numpy(), atol=1e-5)


def test_decoding_emits_no_warnings(photos: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(photos / "across" / "000.png")


# Datasets


def test_unreadable_files_are_skipped_and_listed(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "messy", 5)
    expected = bad_files(root / "across")
    del expected["absent.png"]
    before = contents(root)
    dataset = open_dataset(open_table(root), PREPROCESSING, 2, Data())
    assert {Path(s.image).name for s in dataset.table.skipped} == set(expected)
    assert len(dataset.table) == 10
    assert contents(root) == before


def test_labels_match_pixels_after_skipped_files(tmp_path: Path) -> None:
    for i, colour in enumerate([10, 20, 30, 40, 50, 60]):
        for label in ("a", "b"):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.new("RGB", (32, 32), (colour, 0, (label == "b" and 255) or 0)).save(tmp_path / label / f"{i}.png")
    (tmp_path / "a" / "2.png").write_text("broken")
    dataset = open_dataset(open_table(tmp_path), PREPROCESSING, 2, None)
    batch = next(ordered_batches(dataset.images("all"), 100))
    for name, image, target in zip(dataset.names("all"), batch.images.numpy(), batch.targets, strict=True):
        assert image[0, 0, 0] == 10 * (int(Path(name).stem) + 1)
        assert (image[0, 0, 2] == 255) == (target == 1)


def test_dataset_without_readable_image_is_an_error(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.jpg").write_text("broken")
    with pytest.raises(DataError, match=r"no readable image; the first, a/x\.jpg: not an image"):
        open_dataset(open_table(tmp_path), PREPROCESSING, 1, Data())
