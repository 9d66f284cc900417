"""Damaged metadata (EXIF, XMP, profiles, comments) never costs an image its pixels."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from proof.pictures import encoded, picture

import alexnet
from alexnet.data.decode import decode
from alexnet.data.metadata import strip_metadata
from alexnet.errors import ImageError
from tiff_bytes import FRACTION, LONG, SHORT, SIGNED_FRACTION, TEXT, Tag, directory, tiff

STORED = picture(2, 3, (20, 12))
UPRIGHT = np.asarray(STORED.transpose(Image.Transpose.ROTATE_270))
TURNED: Tag = (0x0112, SHORT, [6])

ODD: dict[str, tuple[list[Tag], str]] = {
    "resolution as text": ([TURNED, (0x011A, TEXT, b"72 dpi\0")], "XResolution is '72 dpi'"),
    "negative resolution": ([TURNED, (0x011A, SIGNED_FRACTION, [-72, 1])], "XResolution is -72.0"),
    "date as a number": ([TURNED, (0x0132, SHORT, [2020])], "DateTime is 2020"),
    "maker as a number": ([TURNED, (0x010F, SHORT, [1])], "Make is 1"),
    "directory that is not there": ([TURNED, (0x8769, LONG, [999_999])], "Corrupt EXIF data"),
    "directory as text": ([TURNED, (0x8769, TEXT, b"abc\0")], "is 'abc'"),
    "directory that is itself": ([TURNED, (0x8769, LONG, [8])], ""),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_beside_odd_tags(name: str, kind: str) -> None:
    tags, _ = ODD[name]
    options = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {"lossless": True} if kind == "WEBP" else {})
    content = encoded(STORED, kind, exif=b"Exif\0\0" + directory(tags), **options)
    result = np.asarray(decode(content)).astype(int)
    assert result.shape == UPRIGHT.shape
    assert np.abs(result - UPRIGHT).mean() < 2


@pytest.mark.parametrize("resolution", [(282, TEXT, b"72 dpi\0"), (282, FRACTION, [1, 0]), (282, SIGNED_FRACTION, [-72, 1])])
def test_tiff_orientation_with_odd_resolution(resolution: Tag) -> None:
    content = tiff(np.asarray(STORED), 2, more=(TURNED, resolution, (306, SHORT, [2020]), (296, TEXT, b"dpi\0")))
    assert np.array_equal(np.asarray(decode(content)), UPRIGHT)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_invalid_exif_orientation_is_upright(value: int) -> None:
    exif = b"Exif\0\0" + directory([(0x0112, SHORT, [value])])
    assert np.array_equal(np.asarray(decode(encoded(STORED, "PNG", exif=exif))), np.asarray(STORED))


def test_check_notes_odd_metadata(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i, (tags, _) in enumerate(ODD.values()):
            content = encoded(picture(i % 3, i + 10 * (label == "b")), "PNG", exif=b"Exif\0\0" + directory(tags))
            (tmp_path / label / f"{i}.png").write_bytes(content)
    plain = encoded(picture(0, 55), "PNG", pnginfo=_texts())
    (tmp_path / "a" / "checksum.png").write_bytes(plain.replace(b"hello", b"HELLO"))
    (tmp_path / "b" / "plain.png").write_bytes(plain)
    problems = alexnet.check(tmp_path).problems
    notes = {problem.image: problem.detail for problem in problems if problem.kind == "metadata"}
    for i, (_, message) in enumerate(ODD.values()):
        assert message in notes.get(f"a/{i}.png", "")
    assert "it decodes without them" in notes["a/checksum.png"]
    assert "b/plain.png" not in notes
    assert not {"corrupt", "truncated", "not an image"} & {problem.kind for problem in problems}


# Damage to metadata alone


def _texts() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "hello")
    info.add_text("Long", "z" * 99, zip=True)
    info.add_itxt("Title", "hello", zip=True)
    return info


EXIF = directory(
    [TURNED, (0x010F, TEXT, b"Maker of cameras\0"), (0x011A, FRACTION, [72, 1]), (0x0132, TEXT, b"2020:01:01 00:00:00\0")]
)
BESIDE = {
    "exif": b"Exif\0\0" + EXIF,
    "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    "dpi": (72, 72),
}
XMP = b"<x:xmpmeta><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>"
FILES = {
    "JPEG": encoded(STORED, "JPEG", **BESIDE, xmp=XMP, comment=b"a comment"),
    "PNG": encoded(STORED, "PNG", **BESIDE, pnginfo=_texts()),
    "WEBP": encoded(STORED, "WEBP", **BESIDE, xmp=XMP, lossless=True),
    "TIFF": encoded(STORED, "TIFF", **BESIDE, compression="tiff_lzw"),
}


def _jpeg(content: bytes) -> Iterator[range]:
    at = 2
    while (marker := content[at + 1]) != 0xDA:
        end = at + 2 + int(struct.unpack_from(">H", content, at + 2)[0])
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            yield range(at + 4, end)
        at = end


def _png(content: bytes) -> Iterator[range]:
    at = 8
    while at < len(content):
        end = at + 12 + int(struct.unpack_from(">I", content, at)[0])
        if content[at + 4] & 0x20:  # ancillary
            yield range(at + 8, end)
        at = end


def _webp(content: bytes) -> Iterator[range]:
    at = 12
    while at < len(content):
        kind, size = struct.unpack_from("<4sI", content, at)
        if kind in (b"EXIF", b"XMP ", b"ICCP"):
            yield range(at + 8, at + 8 + size)
        at += 8 + size + size % 2


def _tiff(content: bytes) -> Iterator[range]:
    (start,) = struct.unpack_from("<I", content, 4)
    for at in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", content, start)[0], 12):
        if struct.unpack_from("<H", content, at)[0] in (271, 274, 282, 283, 296, 306, 34665, 34675):
            yield range(at + 2, at + 12)


RANGES: dict[str, Callable[[bytes], Iterator[range]]] = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "TIFF": _tiff}


@pytest.mark.parametrize("kind", FILES)
def test_damaged_metadata_keeps_the_pixels(kind: str) -> None:
    rng, content = random.Random(1), FILES[kind]
    ranges = list(RANGES[kind](content))
    assert len(ranges) >= 3
    whole = np.asarray(decode(content))
    assert whole.shape == UPRIGHT.shape
    # a damaged orientation may be read as another one
    turns = [np.rot90(side, k) for k in range(4) for side in (whole, whole[:, ::-1])]
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 2, 20])):
            damaged[rng.choice(rng.choice(ranges))] = rng.choice([0, 255, rng.randrange(256)])
        result = np.asarray(decode(bytes(damaged)))
        assert any(np.array_equal(result, turn) for turn in turns)


@pytest.mark.parametrize("kind", FILES)
def test_without_metadata_keeps_the_pixels(kind: str) -> None:
    plain = strip_metadata(FILES[kind])
    assert (plain != FILES[kind]) == (kind != "WEBP")  # which Pillow reads regardless of other metadata
    turned = np.asarray(decode(FILES[kind]))
    result = np.asarray(decode(plain))
    assert np.array_equal(result, turned) or np.array_equal(np.rot90(result, -1), turned)


@pytest.mark.parametrize("length", [0, 3, 10**9, 2**32 - 1])
def test_png_chunk_of_wrong_length_is_skipped(length: int) -> None:
    content = FILES["PNG"]
    at = content.index(b"tEXt") - 4
    damaged = content[:at] + struct.pack(">I", length) + content[at + 4 :]
    assert np.array_equal(np.asarray(decode(damaged)), np.asarray(STORED))


def test_png_with_nonsense_chunks_decodes() -> None:
    def chunk(kind: bytes, content: bytes, error: int = 0) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ error)

    content = encoded(STORED, "PNG")
    after = 8 + 25
    for kind in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"tIME", b"acTL", b"fcTL", b"fdAT"):
        for error in (0, 1):
            odd = content[:after] + chunk(kind, b"\0", error) + content[after:]
            assert np.array_equal(np.asarray(decode(odd)), np.asarray(STORED)), kind
    with pytest.raises(ImageError):
        decode(content.replace(b"IHDR", b"IHDQ"))


def test_damaged_pixels_are_still_refused() -> None:
    content = FILES["PNG"]
    at = content.index(b"IDAT")
    with pytest.raises(ImageError, match="truncated") as caught:
        decode(content[: at + 60])
    assert caught.value.kind == "truncated"
