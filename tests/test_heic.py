"""HEIC photos: the primary image, upright once, in 8 bits; damaged files are reported, and cannot harm the main process."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, features
from proof.inputs import photos
from proof.pictures import class_folders, encoded, picture
from proof.pictures import heic as as_heic

import alexnet
from alexnet.data import heic as heic_images
from alexnet.data.decode import MAX_DECODED, decode, size
from alexnet.data.decode_pool import decode_all, decode_one
from alexnet.data.sources import open_table
from alexnet.errors import ImageError
from heic_bytes import Item, auxiliary, coded, exif, grid, heic, ispe, turns

pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: no HEIC files to read")
pytest.importorskip("pi_heif", reason="pi-heif is not installed: HEIC files cannot be read")

LOSSLESS = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}  # RGB as it is
PICTURE = picture(2, 0, (96, 64))
PIXELS = np.asarray(PICTURE)
SMALL = Image.new("RGB", (64, 64), "red")


@pytest.fixture(scope="module")
def photo() -> Item:
    """`PICTURE`, losslessly."""
    return coded(PICTURE, **LOSSLESS)


def with_properties(item: Item, *properties: bytes, refers: tuple[tuple[bytes, tuple[int, ...]], ...] = ()) -> Item:
    return Item(item.kind, item.data, item.properties + properties, refers)


def assert_pixels(content: bytes, expected: Any = PIXELS) -> None:
    np.testing.assert_array_equal(np.asarray(decode(content)), expected)


# Upright


@pytest.mark.parametrize("mirror", [None, 0, 1])
@pytest.mark.parametrize("angle", range(4))
def test_container_turns_and_exif_does_not(photo: Item, angle: int, mirror: int | None) -> None:
    upright = np.rot90(PIXELS, angle)  # anticlockwise, as `irot`
    upright = {None: upright, 0: upright[::-1], 1: upright[:, ::-1]}[mirror]  # `imir`: top and bottom, or left and right
    turned = with_properties(photo, *turns(angle, mirror))
    assert_pixels(heic([turned]), upright)
    assert size(heic([turned])) == upright.shape[1::-1]
    for orientation in range(1, 9):
        assert_pixels(heic([turned, exif(orientation, 1)]), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_that_pillow_heif_writes_is_applied_once(orientation: int) -> None:
    """It writes the orientation into the container and into EXIF, as phones do; a JPEG of the same EXIF must agree."""
    data = Image.Exif()
    data[0x0112] = orientation
    both = as_heic(PICTURE, exif=data.tobytes(), **LOSSLESS)
    assert (b"irot" in both or b"imir" in both) == (orientation > 1)
    assert_pixels(both, np.asarray(decode(encoded(PICTURE, "PNG", exif=data))))


# Pixels


def error(result: Image.Image, expected: Any) -> tuple[float, float, float]:
    """Return the mean absolute, the largest and the mean error, in levels."""
    difference = np.asarray(result, np.float64) - expected
    return float(np.abs(difference).mean()), float(np.abs(difference).max()), float(difference.mean())


@pytest.mark.parametrize("name", ["china", "flower"])
def test_pixels_of_a_photo_are_those_of_its_jpeg(name: str) -> None:
    pixels = photos()[name][:160, :240]
    image = Image.fromarray(pixels)
    whole, largest, bias = error(decode(as_heic(image, quality=-1, chroma=444)), pixels)  # YCbCr of 8 bits
    assert whole < 0.5
    assert largest <= 2
    assert abs(bias) < 0.1
    jpeg = np.asarray(decode(encoded(image, "JPEG", quality=95)))
    for tile in (0, 64):
        lossy, _, bias = error(decode(as_heic(image, quality=90, **({"tile_size": tile} if tile else {}))), jpeg)
        assert lossy < 4
        assert abs(bias) < 0.3


def test_real_photos_are_those_of_their_jpegs_in_every_orientation_and_depth(real_data: Path) -> None:
    files = sorted((real_data / "imagenette" / "val").glob("*/*.JPEG"))[::40]
    for orientation, file in enumerate(files[:8], 1):
        data = Image.Exif()
        data[0x0112] = orientation
        photo = decode(file).crop((20, 0, 116, 64))
        turned = np.asarray(decode(encoded(photo, "PNG", exif=data)))
        assert_pixels(as_heic(photo, exif=data.tobytes(), **LOSSLESS), turned)
        deep = pillow_heif.from_bytes("RGB;16", photo.size, (np.asarray(photo).astype("<u2") * 257).tobytes())
        assert_pixels(as_heic(deep, exif=data.tobytes(), **LOSSLESS), turned)
        jpeg = np.asarray(decode(encoded(photo, "JPEG", quality=95, exif=data)))
        lossy, _, bias = error(decode(as_heic((photo, deep)[orientation % 2], quality=90, exif=data.tobytes())), jpeg)
        assert lossy < 5
        assert abs(bias) < 0.5
    assert len(files) >= 8


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("mode", ["RGB;16", "I;16"])
def test_more_than_8_bits_are_scaled_to_8(mode: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    white = 2**bits - 1
    levels = np.random.default_rng(0).integers(0, white + 1, (300, 64, 3) if mode == "RGB;16" else (300, 64))
    levels[0] = np.linspace(0, white, 64).round()[:, None] if mode == "RGB;16" else np.linspace(0, white, 64).round()
    image = pillow_heif.from_bytes(mode, (64, 300), (levels << (16 - bits)).astype("<u2").tobytes())
    content = as_heic(image, **(LOSSLESS if mode == "RGB;16" else {"quality": -1}))
    expected = (levels * (255 / white)).round()
    assert_pixels(content, expected if mode == "RGB;16" else np.repeat(expected[..., None], 3, 2))


def test_grey_and_transparent_images() -> None:
    grey = PICTURE.convert("L")
    assert_pixels(as_heic(grey, quality=-1), np.repeat(np.asarray(grey)[..., None], 3, 2))
    alpha = Image.linear_gradient("L").resize(PICTURE.size)
    clear = PICTURE.copy()
    clear.putalpha(alpha)
    share = np.asarray(alpha, np.float64)[..., None] / 255
    assert error(decode(as_heic(clear, **LOSSLESS)), PIXELS * share + 255 * (1 - share))[1] <= 1


def test_colour_profile_is_ignored_as_in_jpeg() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # any other than sRGB
    plain, with_profile = (decode(encoded(PICTURE, "JPEG", icc_profile=each)) for each in (None, profile))
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(with_profile))
    assert_pixels(as_heic(PICTURE, icc_profile=profile, **LOSSLESS))


# What a file holds


@pytest.mark.parametrize("image_size", [(128, 128), (150, 90), (65, 64)])
def test_grid_of_tiles_is_put_together(image_size: tuple[int, int]) -> None:
    image = picture(1, 3, image_size)
    assert_pixels(heic(grid(image, 64, 1, **LOSSLESS)), np.asarray(image))


def test_only_the_primary_image_is_used(photo: Item) -> None:
    other = coded(SMALL, **LOSSLESS)
    small = coded(PICTURE.resize((64, 64)).convert("L"), quality=50)
    gain, depth = (
        with_properties(small, auxiliary(kind), refers=((b"auxl", (1,)),))
        for kind in ("urn:com:apple:photo:2020:aux:hdrgainmap", "urn:mpeg:hevc:2015:auxid:2")
    )
    thumbnail = with_properties(other, refers=((b"thmb", (1,)),))
    hidden = Item(small.kind, small.data, small.properties, hidden=True)
    tone_map = Item(b"tmap", bytes(62), (ispe(96, 64), *photo.properties[2:]), ((b"dimg", (1, 2)),))
    one_photo = {
        "Apple's gain map and a depth map": heic([photo, gain, depth]),
        "ISO's gain map": heic([photo, hidden, tone_map], others=(b"mif1", b"heic", b"tmap")),
        "a thumbnail": heic([photo, thumbnail]),
        "a thumbnail first": heic([with_properties(other, refers=((b"thmb", (2,)),)), photo], primary=2),
    }
    burst = {"the first": heic([photo, other]), "the second": heic([other, photo], primary=2)}
    for name, content in {**one_photo, **burst}.items():
        assert_pixels(content), name
        facts = decode_one("facts", content, {}).facts
        assert (facts["frames"], facts["mode"], facts["orientation"], facts["metadata"]) == (1 + (name in burst), "RGB", 1, "")


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"MiHE"])
def test_heic_by_its_brand(photo: Item, brand: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(heic([photo], brand=brand))
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "photo.jpg")), PIXELS)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_not_taken_for_heic() -> None:
    content = encoded(PICTURE, "AVIF", quality=100)
    same = content[:8] + b"mif1" + content[12:]
    assert b"avif" in same[16:40]
    assert_pixels(same, np.asarray(decode(content)))


# Damage


def test_truncated_file_is_reported_at_any_length() -> None:
    """Libheif gives an image with black tiles where the file is cut."""
    content = heic(grid(PICTURE, 64, 1, quality=90))
    whole = [*range(12, 200, 7), *range(200, len(content), 101), len(content) - 1]
    for length in whole:
        with pytest.raises(ImageError, match=r"^a HEIC photo that is truncated") as caught:
            decode(content[:length])
        assert caught.value.kind == "truncated"


def test_missing_tile_is_reported() -> None:
    tiles = grid(picture(0, 1, (128, 128)), 64, 1, quality=90)
    tiles[3].data = bytes(len(tiles[3].data))
    with pytest.raises(ImageError, match="lacks a part of its data") as caught:
        decode(heic(tiles))
    assert caught.value.kind == "corrupt"


def test_damaged_metadata_are_ignored_and_reported(photo: Item) -> None:
    about = exif(6, 1)
    content = heic([photo, about])
    place = content.rindex(len(about.data).to_bytes(4, "big"), 0, content.index(b"iinf"))
    outside = content[: place - 4] + (10**6).to_bytes(4, "big") + content[place:]
    about.data = b"\0\0\0\0II*\0\xff\xff"
    for damaged in (outside, heic([photo, about])):
        assert_pixels(damaged)
        assert decode_one("facts", damaged, {}).facts["metadata"]


def test_no_other_image_stands_in_for_a_damaged_primary_one(photo: Item) -> None:
    without_settings, without_size = photo.properties[1:], (photo.properties[0], *photo.properties[2:])
    for properties in (without_settings, without_size):
        broken = Item(b"hvc1", photo.data, properties)
        with pytest.raises(ImageError, match=r"^a HEIC photo whose primary image is damaged$"):
            decode(heic([coded(SMALL, **LOSSLESS), broken], primary=2))


def test_damaged_files_are_decoded_or_reported_in_few_words(photo: Item) -> None:
    chance = random.Random(0)
    content = bytearray(heic([*grid(PICTURE, 64, 1, quality=50), exif(6, 1)]))
    files = []
    for _ in range(150):
        changed = content.copy()
        for _ in range(3):
            changed[int(len(changed) * chance.random() ** 3)] ^= 1 << chance.randrange(8)
        files.append(bytes(changed))
    outcomes = [answer for _, answer in decode_all("facts", files, 1)]
    reasons = [str(answer) for answer in outcomes if isinstance(answer, ImageError)]
    assert 20 < len(reasons) < 150
    assert not [reason for reason in reasons if "crashed" in reason or "\n" in reason or len(reason) > 300]


def test_too_large_photo_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    side = 7200
    item = coded(SMALL, quality=50)
    tiles = [Item(b"hvc1", item.data, item.properties, hidden=True)] * 4
    data = bytes([0, 1, 1, 1]) + side.to_bytes(4, "big") * 2
    content = heic([Item(b"grid", data, (ispe(side, side),), ((b"dimg", (2, 3, 4, 5)),)), *tiles])
    monkeypatch.setattr(heic_images.HeicImage, "load", lambda _: pytest.fail("it decoded"))
    with pytest.raises(ImageError, match=f"{side}x{side}, .* the limit to decode is {MAX_DECODED / 1e6:.0f}") as caught:
        decode(content)
    assert caught.value.kind == "huge"


def test_missing_library_is_named(photo: Item, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(ImageError, match=r"^a HEIC photo: install pi-heif .*pip install pi-heif") as caught:
        decode(heic([photo]))
    assert caught.value.kind == "not an image"


# Where images are


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same class folders twice: in PNG, and every other photo in HEIC, one of them without a suffix."""
    both = tmp_path_factory.mktemp("phone")
    plain, mixed = (class_folders(both / name, 6, size=(64, 64)) for name in ("plain", "mixed"))
    for place, file in enumerate(sorted(mixed.rglob("*.png"))[::2]):
        file.with_suffix((".HEIC", ".heif", ".hif", "")[place % 4]).write_bytes(as_heic(Image.open(file), **LOSSLESS))
        file.unlink()
    return plain, mixed


def test_heic_photos_train_predict_and_check_like_others(folders: tuple[Path, Path], trained: alexnet.Run) -> None:
    plain, mixed = (open_table(folder) for folder in folders)
    assert [Path(name).stem for name in mixed.images] == [Path(name).stem for name in plain.images]
    settings = trained.config.preprocessing.decode_options()
    pixels = [[answer.body for _, answer in decode_all("pixels", table.sources(), 1, **settings)] for table in (plain, mixed)]
    assert pixels[0] == pixels[1]
    found = [[(problem.kind, Path(problem.image or "").stem) for problem in alexnet.check(each).problems] for each in folders]
    assert found[0] == found[1]
    answers = [[answer["predictions"] for answer in trained.predict(str(folder))] for folder in folders]
    assert answers[0] == answers[1]


def test_libheif_is_kept_out_of_the_main_process(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for place, file in enumerate(sorted(folders[1].rglob("*.HEIC"))):
        for label in ("a", "b"):
            (tmp_path / label / f"{place}").write_bytes(file.read_bytes())  # opened, as no name is that of an image
    script = (
        "import sys, alexnet; from alexnet.data.sources import open_table; from alexnet.data.decode_pool import decode_all\n"
        "sources = open_table(sys.argv[1]).sources()\n"
        "found = [answer.facts['mode'] for _, answer in decode_all('facts', sources, 1)]\n"
        "print(len(found), 'pi_heif' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(list(tmp_path.glob("*/*")))), "False"]
