"""Damaged or hostile image files are decoded or reported, and do not affect other files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from proof.fuzz import fuzz
from proof.pictures import class_folders, picture

import alexnet
from alexnet.data import decode_pool
from alexnet.data.decode import MAX_DECODED, MAX_PIXELS, decode
from alexnet.data.decode_pool import Answer, decode_all
from alexnet.data.sources import open_table
from alexnet.errors import DataError, ImageError, printable
from alexnet.recipe import Preprocessing

PREPROCESSING = Preprocessing(cache_size=32, input=32, fit="crop", reduced_decode=False, resize="bilinear")


def test_fuzzed_images_are_decoded_or_reported(tmp_path: Path, trained: alexnet.Run) -> None:
    counts, faults = fuzz(tmp_path, 500, 0, trained)
    assert not faults
    assert counts.total() == 500
    assert len({outcome for _, _, outcome in counts}) > 3, "some decode, some do not, for several reasons"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_named_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a file"):
        decode(tmp_path / "pipe.png")


def test_postscript_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="a PDF or PostScript file"):
        decode(tmp_path / "photo.jpg")


@pytest.mark.parametrize(("width", "height", "limit"), [(12_001, 10_000, MAX_PIXELS), (7_100, 7_100, MAX_DECODED)])
def test_too_large_image_is_refused_before_decoding(
    tmp_path: Path, width: int, height: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (width, height)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it decoded"))
    with pytest.raises(ImageError, match=f"{width}x{height}, .* the limit to .* is {limit / 1e6:.0f}") as caught:
        decode(tmp_path / "large.png")
    assert caught.value.kind == "huge"


def test_large_jpeg_decodes_at_reduced_scale(tmp_path: Path) -> None:
    Image.new("RGB", (10_000, 8_000), (9, 99, 200)).save(tmp_path / "large.jpg")
    assert decode(tmp_path / "large.jpg", 227).size == (1250, 1000)
    with pytest.raises(ImageError, match="80 megapixels"):
        decode(tmp_path / "large.jpg")


# Workers


@pytest.fixture
def faulty_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of images; some, by name, make a worker hang in C, crash or use all memory, and the others are intact."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        """
import os, re, signal, time
from alexnet.data import decode
original = decode.stored_pixels
def faulty(source, **settings):
    if "hang" in source.name:
        re.match(r"(a+)+$", "a" * 60 + "b")
    if "asleep" in source.name:
        time.sleep(600)
    if "crash" in source.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "greedy" in source.name:
        bytearray(1 << 40)
    return original(source, **settings)
decode.stored_pixels = faulty
"""
    )
    decode_pool._end_all()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "images").mkdir()
    for i, name in enumerate(["a", "hang", "b", "crash", "greedy", "c", "crash2", "d"]):
        picture(0, i).save(tmp_path / "images" / f"{name}.png")
    yield tmp_path / "images"
    decode_pool._end_all()


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="the worker's failures are POSIX signals")
def test_decode_worker_that_hangs_or_crashes_is_replaced(faulty_images: Path) -> None:
    paths = [faulty_images / f"{name}.png" for name in ("a", "hang", "b", "crash", "greedy", "c", "crash2", "d")]
    result = list(decode_all("pixels", paths, 2, 4, **PREPROCESSING.decode_options()))
    assert [source for source, _ in result] == paths
    reasons = {path.stem: str(answer) for path, answer in result if isinstance(answer, ImageError)}
    assert reasons == {
        "hang": "decoding takes more than 5 seconds",
        "crash": "the decoder crashed (exit code -11)",
        "crash2": "the decoder crashed (exit code -11)",
        "greedy": "too large to decode",
    }
    pixels = {path.stem: answer.pixels for path, answer in result if isinstance(answer, Answer)}
    assert all(
        np.array_equal(pixels[name], np.asarray(decode(faulty_images / f"{name}.png").resize((32, 32), 3))) for name in "abcd"
    )


def test_decode_pool_keeps_at_most_two_idle_workers(photos: Path) -> None:
    list(decode_all("size", sorted(photos.rglob("*.png")), 5))
    children = [child for child in psutil.Process().children() if "alexnet.data.decode_worker" in child.cmdline()]
    assert 1 <= len(children) <= 2
    decode_pool._end_all()
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_decode_worker_that_cannot_start_is_one_line(photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    decode_pool._end_all()
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DataError, match=r"cannot decode images: .* ended with exit code"):
        list(decode_all("size", photos.rglob("*.png"), 2))


def test_decode_worker_that_waits_for_ever_is_replaced(faulty_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(0, 0).save(faulty_images / "asleep.png")
    monkeypatch.setattr(decode_pool, "WALL_SECONDS", 0.5)
    monkeypatch.setattr(decode_pool, "WATCH_SECONDS", 0.1)
    asleep = decode_pool.decode_one("pixels", faulty_images / "asleep.png", PREPROCESSING.decode_options())
    assert isinstance(asleep, ImageError)
    assert asleep.kind == "slow"
    monkeypatch.undo()
    assert isinstance(decode_pool.decode_one("pixels", faulty_images / "a.png", PREPROCESSING.decode_options()), Answer)


def test_decode_worker_ignores_modules_in_the_current_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_pool._end_all()
    (tmp_path / "numpy.py").write_text("raise SystemExit('run from the folder of photos')")
    monkeypatch.chdir(tmp_path)
    assert all(isinstance(answer, Answer) for _, answer in decode_all("size", photos.rglob("*.png"), 1))


# Names


def test_control_characters_are_escaped() -> None:
    assert printable("cat\x1b[2J\n\u202egpj.exe") == "cat\\x1b[2J\\n\\u202egpj.exe"
    assert printable("Äpfel 苹果 👩\u200d👩\u200d👧") == "Äpfel 苹果 👩\u200d👩\u200d👧"


def test_label_with_control_characters_is_refused(tmp_path: Path) -> None:
    class_folders(tmp_path / "photos", 4, ("cat", "dog\x1b[2J"))
    with pytest.raises(DataError, match=r"the label 'dog\\x1b\[2J', which has control characters"):
        open_table(tmp_path / "photos")
