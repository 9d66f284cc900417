"""Value ranges by file format: images stay comparable; formats without a known white are refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from proof.pictures import encoded

import alexnet
from alexnet.data.decode import decode, describe_file
from alexnet.errors import DataError, ImageError
from tiff_bytes import BYTE, LONG, SHORT, Tag, tiff

CHANCE = np.random.default_rng(5)
GREY, COLOUR, ALPHA = (CHANCE.integers(0, 256, (6, 8, *more), dtype=np.uint8) for more in ((), (3,), (1,)))
GREY16, COLOUR16, ALPHA16 = (CHANCE.integers(0, 65536, (6, 8, *more)).astype(np.uint16) for more in ((), (3,), (1,)))


def on_white(levels: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Blend levels from 0 to 255 with white by their opacity, 0 to 255."""
    return levels * (alpha / 255.0) + (255.0 - alpha)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows: NDArray[Any], width: int, bits: int, colour: int, transparent: bytes = b"") -> bytes:
    """Return a PNG of packed rows; `colour` is the PNG colour type, `transparent` a tRNS chunk."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0))
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    clear = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + head + clear + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def packed12(levels: NDArray[Any]) -> NDArray[np.uint8]:
    """Pack H W levels of 12 bits, W even, two in three bytes."""
    a, b = levels[:, ::2].astype(np.uint16), levels[:, 1::2].astype(np.uint16)
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8).reshape(len(levels), -1)


def netpbm(kind: bytes, levels: NDArray[Any], white: int) -> bytes:
    return b"%s %d %d %d\n" % (kind, levels.shape[1], levels.shape[0], white) + levels.tobytes()


def stacked(*parts: NDArray[Any]) -> NDArray[Any]:
    return np.dstack(parts)


RIGHT: dict[str, tuple[bytes, NDArray[Any]]] = {
    "TIFF, 16-bit grey": (tiff(GREY16), GREY16 / 257),
    "TIFF, 16-bit grey, dark": (tiff(GREY16 // 300), GREY16 // 300 / 257),
    "TIFF, 16-bit grey, big-endian": (tiff(GREY16.astype(">u2")), GREY16 / 257),
    "TIFF, 16-bit grey, white is zero": (tiff(GREY16, 0), 255 - GREY16 / 257),
    "TIFF, 8-bit grey, white is zero": (tiff(GREY, 0), 255.0 - GREY),
    "TIFF, 12-bit grey": (tiff(packed12(GREY16 >> 4), bits=12, more=((256, SHORT, [8]),)), (GREY16 >> 4) * (255 / 4095)),
    "TIFF, 16-bit RGB": (tiff(COLOUR16, 2), COLOUR16 / 257),
    "TIFF, 16-bit RGB, big-endian": (tiff(COLOUR16.astype(">u2"), 2), COLOUR16 / 257),
    "TIFF, 16-bit RGB, a plane after the other": (tiff(COLOUR16, 2, planes=True), COLOUR16 / 257),
    "TIFF, 8-bit RGB, a plane after the other": (tiff(COLOUR, 2, planes=True), COLOUR),
    "TIFF, 16-bit RGBA": (tiff(stacked(COLOUR16, ALPHA16), 2, extra=2), on_white(COLOUR16 / 257, ALPHA16 / 257)),
    "TIFF, RGB and infrared": (tiff(stacked(COLOUR, ALPHA), 2, extra=0), COLOUR),
    "TIFF, RGBA": (tiff(stacked(COLOUR, ALPHA), 2, extra=2), on_white(COLOUR, ALPHA)),
    "TIFF, RGBA, premultiplied": (
        tiff(stacked(COLOUR // 2, ALPHA // 2 + 128), 2, extra=1),
        COLOUR // 2 + 255.0 - (ALPHA // 2 + 128),
    ),
    "TIFF, grey and alpha": (tiff(stacked(GREY, ALPHA), extra=2), on_white(GREY[..., None], ALPHA)),
    "TIFF, CMYK": (tiff(stacked(255 - COLOUR, ALPHA * 0), 5), COLOUR),
    "PNG, 16-bit grey": (png(GREY16.astype(">u2"), 8, 16, 0), GREY16 / 257),
    "PNG, 16-bit grey, dark": (png((GREY16 // 300).astype(">u2"), 8, 16, 0), GREY16 // 300 / 257),
    "PNG, 16-bit RGB": (png(COLOUR16.astype(">u2"), 8, 16, 2), COLOUR16 / 257),
    "PNG, 16-bit grey and alpha": (
        png(stacked(GREY16, ALPHA16).astype(">u2"), 8, 16, 4),
        on_white(GREY16[..., None] / 257, ALPHA16 / 257),
    ),
    "PNG, 16-bit RGBA": (png(stacked(COLOUR16, ALPHA16).astype(">u2"), 8, 16, 6), on_white(COLOUR16 / 257, ALPHA16 / 257)),
    "PNG, 16-bit grey, a transparent level": (
        png(GREY16.astype(">u2"), 8, 16, 0, struct.pack(">H", GREY16[2, 3])),
        np.where(GREY16[2, 3] == GREY16, 255, GREY16 / 257),
    ),
    "PNG, 16-bit RGB, a transparent colour": (
        png(COLOUR16.astype(">u2"), 8, 16, 2, COLOUR16[2, 3].astype(">u2").tobytes()),
        np.where((COLOUR16[2, 3] == COLOUR16).all(-1, keepdims=True), 255, COLOUR16 / 257),
    ),
    "PNG, 2-bit grey": (png(np.array([[0b00011011]], np.uint8), 4, 2, 0), np.array([[0, 85, 170, 255.0]])),
    "PNG, 2-bit grey, a transparent level": (
        png(np.array([[0b00011011]], np.uint8), 4, 2, 0, b"\0\1"),
        np.array([[0, 255, 170, 255.0]]),
    ),
    "PNG, 1-bit": (png(np.array([[0b01000000]], np.uint8), 2, 1, 0), np.array([[0, 255.0]])),
    "PGM, white is 15": (netpbm(b"P5", GREY // 16, 15), GREY // 16 * 17.0),
    "PGM, white is 4095": (netpbm(b"P5", (GREY16 >> 4).astype(">u2"), 4095), (GREY16 >> 4) * (255 / 4095)),
    "PGM, white is 65535": (netpbm(b"P5", GREY16.astype(">u2"), 65535), GREY16 / 257),
    "PPM, white is 4095": (netpbm(b"P6", (COLOUR16 >> 4).astype(">u2"), 4095), (COLOUR16 >> 4) * (255 / 4095)),
    "JPEG 2000, 16-bit grey": (encoded(Image.fromarray(GREY16), "JPEG2000", irreversible=False), GREY16 / 257),
    "several pages": (encoded(Image.fromarray(GREY), "TIFF", save_all=True, append_images=[Image.fromarray(255 - GREY)]), GREY),
}


@pytest.mark.parametrize("name", RIGHT)
def test_value_range_by_format(name: str) -> None:
    content, expected = RIGHT[name]
    result = np.asarray(decode(content)).astype(float)
    off = np.abs(result - (expected if expected.ndim == 3 else expected[..., None])).max()
    assert off <= (2 if "alpha" in name or "RGBA" in name else 1.01)  # two roundings; the upper 8 of 16 bits


def test_lab_to_rgb() -> None:
    lab = np.array([[[255, 0, 0], [136, 81, 70], [0, 0, 0]]], np.uint8)  # white, red, black; a and b are signed
    result = np.asarray(decode(tiff(lab, 8))).astype(int)
    assert np.abs(result - [[[255, 255, 255], [252, 5, 0], [0, 0, 0]]]).max() <= 12


WITHOUT_WHITE = {
    "floats from 0 to 1": (tiff((GREY / 255).astype(np.float32), number=3), "32-bit floating-point samples"),
    "reflectances": (tiff((GREY / 850).astype(np.float32), number=3), "32-bit floating-point samples"),
    "floats with NaN": (tiff(np.full((6, 8), np.nan, np.float32), number=3), "32-bit floating-point samples"),
    "float16": (tiff((GREY / 255).astype(np.float16), number=3), "16-bit floating-point samples"),
    "float64": (tiff(GREY / 255, number=3), "64-bit floating-point samples"),
    "floats in colour": (tiff((COLOUR / 255).astype(np.float32), 2, number=3), "32-bit floating-point samples, RGB"),
    "int8": (tiff(GREY.astype(np.int8), number=2), "8-bit signed integer samples"),
    "int16": (tiff(GREY16.astype(np.int16), number=2), "16-bit signed integer samples"),
    "int32": (tiff(GREY.astype(np.int32), number=2), "32-bit signed integer samples"),
    "uint32": (tiff(GREY.astype(np.uint32)), "32-bit integer samples"),
    "uint64": (tiff(GREY.astype(np.uint64)), "64-bit integer samples"),
    "five bands": (tiff(CHANCE.integers(0, 256, (6, 8, 5)).astype(np.uint8)), "5 x 8-bit integer samples"),
    "PFM": (b"Pf 8 6 -1.0\n" + (GREY / 255).astype("<f4").tobytes(), "floating-point samples"),
}


@pytest.mark.parametrize("name", WITHOUT_WHITE)
def test_image_without_known_white_is_refused(name: str) -> None:
    content, reason = WITHOUT_WHITE[name]
    with pytest.raises(ImageError, match=f"{reason}.*: save it as 8- or 16-bit grey or RGB") as caught:
        decode(content)
    assert caught.value.kind == "format"


def tag(number: int, kind: int, value: int) -> Tag:
    return number, kind, [value]


JPEG = encoded(Image.fromarray(COLOUR), "JPEG")
UNREAD = {
    "an AVIF image": b"\0\0\0\x1cftypavif\0\0\0\0",
    "a video": b"\0\0\0\x20ftypisom",
    "a DICOM file": bytes(128) + b"DICM",
    "a NIfTI file": struct.pack("<i", 348) + bytes(340) + b"n+1\0",
    "a file of arrays": b"\x93NUMPY\1\0",
    "a Photoshop file": b"8BPS\0\1",
    "a JPEG XL image": b"\xff\x0a" + bytes(9),
    "a PDF or PostScript file": b"%PDF-1.4",
    "an SVG drawing": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "a web page": b"<!DOCTYPE html><html>404</html>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
    "an archive": b"PK\x03\x04",
    "a JPEG of 12-bit samples": JPEG.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "not an image": b"\0\5\x16\7\0\2\0\0Mac OS X",
}


@pytest.mark.parametrize("kind", UNREAD)
def test_other_file_formats_are_refused_by_content(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(UNREAD[kind])
    for source in (file, UNREAD[kind]):
        with pytest.raises(ImageError, match=f"^{kind}") as caught:
            decode(source)
        assert caught.value.kind == "not an image"


PREVIEW = (tag(254, LONG, 1), tag(330, LONG, 8))  # a smaller copy of another page, which is elsewhere
RAW = {
    "DNG with a preview": tiff(COLOUR, 2, more=(*PREVIEW, (50706, BYTE, bytes([1, 4, 0, 0])))),
    "DNG, big-endian": tiff(COLOUR16.astype(">u2"), 2, more=((50706, BYTE, bytes([1, 4, 0, 0])),)),
    "DNG without a preview": tiff(GREY16, 32803, more=((50706, BYTE, bytes([1, 1, 0, 0])),)),
    "NEF, ARW": tiff(COLOUR, 2, more=PREVIEW),
    "PEF": tiff(GREY16, 32803),
    "CR2": b"II*\0\x10\0\0\0CR\2\0" + tiff(COLOUR, 2)[12:],
    "CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    "CRW": b"II\x1a\0\0\0HEAPCCDR",
    "RAF": b"FUJIFILMCCD-RAW 0201",
    "ORF": b"IIRO\x08\0\0\0",
    "ORF, big-endian": b"MMOR\0\0\0\x08",
    "RW2": b"IIU\0\x08\0\0\0",
    "MRW": b"\0MRM\0\0\0\x08",
    "X3F": b"FOVb\0\0\2\0",
}


@pytest.mark.parametrize("kind", RAW)
def test_raw_photo_is_named_and_its_preview_is_not_used(kind: str, tmp_path: Path) -> None:
    for name in ("photo.dng", "photo.tif"):
        (tmp_path / name).write_bytes(RAW[kind])
        for source in (tmp_path / name, RAW[kind]):
            with pytest.raises(ImageError, match=r"^a camera's RAW photo: save it as JPEG$") as caught:
                decode(source)
            assert caught.value.kind == "not an image"
        assert describe_file(tmp_path / name) == "a camera's RAW photo: save it as JPEG"


def test_smaller_copies_after_the_first_page_are_no_raw_photo() -> None:
    for more in ((tag(330, LONG, 8),), (tag(254, LONG, 1),), (tag(254, LONG, 2), tag(330, LONG, 8))):
        np.testing.assert_array_equal(np.asarray(decode(tiff(COLOUR, 2, more=more))), COLOUR)


def test_jpeg_2000_of_more_than_8_bits_is_refused() -> None:
    content = bytearray(encoded(Image.fromarray(COLOUR), "JPEG2000", irreversible=False))
    at = content.index(b"\xff\x4f\xff\x51") + 4 + 38
    assert content[at : at + 9 : 3] == bytes([7, 7, 7])
    assert np.array_equal(np.asarray(decode(bytes(content))), COLOUR)
    content[at : at + 9 : 3] = bytes([15, 15, 15])
    with pytest.raises(ImageError, match="JPEG 2000 colour image of 16-bit samples: save it as PNG or TIFF"):
        decode(bytes(content))


def test_8_and_16_bit_images_look_the_same() -> None:
    for brightest in (255, 40, 3):
        eight = (GREY.astype(int) * brightest // 255).astype(np.uint8)
        sixteen = encoded(Image.fromarray(eight.astype(np.uint16) * 257), "PNG")
        assert np.array_equal(np.asarray(decode(sixteen)), np.asarray(decode(encoded(Image.fromarray(eight), "PNG"))))


# Datasets without a usable image


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    for label in ("a", "b"):
        (tmp_path / "floats" / label).mkdir(parents=True)
        for i in range(6):
            levels = CHANCE.random((6, 8)).astype(np.float32)
            (tmp_path / "floats" / label / f"{i}.tif").write_bytes(tiff(levels, number=3))
    return tmp_path / "floats"


def test_check_reports_unknown_white_and_dark_images(floats: Path) -> None:
    for i in range(6):
        Image.fromarray((CHANCE.integers(0, 4096, (20, 20))).astype(np.uint16)).save(floats / "a" / f"dark{i}.png")
    kinds = [(problem.kind, problem.image[:6]) for problem in alexnet.check(floats).problems if problem.image]
    assert kinds.count(("format", "a/0.ti")) == 1
    assert [kind for kind, _ in kinds].count("format") == 12
    assert kinds.count(("dark", "a/dark")) == 6


def test_train_on_images_without_known_white(floats: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no readable image; the first, a/0\.tif: 32-bit floating-point .* save it as"):
        alexnet.train(floats, out=tmp_path / "run")
