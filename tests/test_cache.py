"""The cache of decoded images: what it holds, what makes it anew, damage, killed processes, and several that build it."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from proof.pictures import class_folders, picture

from alexnet.data import cache
from alexnet.data.cache import cache_folder, open_cache, rows_per_part
from alexnet.data.on_demand import OnDemand
from alexnet.data.preprocessing import pixels
from alexnet.data.sources import open_table
from alexnet.data.table import Table
from alexnet.errors import DataError
from alexnet.files import HOST, DiskFull
from alexnet.recipe import Preprocessing
from conftest import damaged

PREPROCESSING = Preprocessing(cache_size=32, input=32, fit="crop", reduced_decode=False, resize="bilinear")
BUILD = """
import sys
from alexnet.data import cache
from alexnet.data.sources import open_table
from alexnet.recipe import Preprocessing
cache.LEAST_ROWS = 4
images = Preprocessing(cache_size=32, input=32, fit="crop", reduced_decode=False, resize="bilinear")
print(cache.open_cache(open_table(sys.argv[1]), images, 1).sha256)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 40 images, with a cache of its own in parts of four."""
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LEAST_ROWS", 4)
    return class_folders(tmp_path / "photos")


def taken(photos: Path) -> NDArray[np.uint8]:
    """Return all images of a folder, from its cache."""
    table = open_table(photos)
    result = open_cache(table, PREPROCESSING, 2).pixels.take(np.arange(len(table)))
    assert result.dtype == np.uint8
    return result


def decoded(photos: Path) -> NDArray[np.uint8]:
    """Return all images of a folder, decoded in this process."""
    table = open_table(photos)
    return np.stack([pixels(table.source(row), PREPROCESSING) for row in range(len(table))])


def files(suffix: str) -> list[Path]:
    """Return the files of the only cache with this suffix."""
    return sorted(cache_folder().glob(f"*/*{suffix}"))


def count_decoded(patch: pytest.MonkeyPatch) -> list[object]:
    """Return a list to which each image that is decoded from now on is added."""
    seen: list[object] = []
    original = cache.decode_all

    def noted(sources: Iterable[object]) -> Iterator[object]:
        for source in sources:
            seen.append(source)
            yield source

    def counted(work: str, sources: Iterable[object], *args: Any, **settings: Any) -> Any:
        return original(work, noted(sources), *args, **settings)

    patch.setattr(cache, "decode_all", counted)
    return seen


def test_it_equals_decoding_for_any_workers_and_parts(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, table = decoded(own), open_table(own)
    for workers, rows in ((1, 4), (4, 7), (2, 512)):
        monkeypatch.setattr(cache, "LEAST_ROWS", rows)
        shutil.rmtree(cache_folder(), ignore_errors=True)
        result = open_cache(table, PREPROCESSING, workers)
        assert len(files(".u8")) == -(-40 // rows)
        order = np.random.default_rng(0).permutation(40)
        np.testing.assert_array_equal(result.pixels.take(order), expected[order])
        np.testing.assert_array_equal(result.pixels.image(17), expected[17])
        np.testing.assert_array_equal(result.pixels.shapes, [[32, 32]] * 40)
        assert result.thumbnails().shape == (40, 768)


@pytest.mark.parametrize(("count", "rows"), [(0, 512), (32_768, 512), (32_769, 1024), (1_281_167, 32_768)])
def test_there_are_at_most_64_parts(count: int, rows: int) -> None:
    assert rows_per_part(count) == rows
    assert count <= 64 * rows


def test_only_what_changed_is_decoded(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken(own)
    seen = count_decoded(monkeypatch)
    picture(2, 9).save(own / "across" / "000.png")
    picture(2, 10).save(own / "across" / "003a.png")  # moves the rows of all later images
    (own / "down" / "007.png").unlink()
    np.testing.assert_array_equal(taken(own), decoded(own))
    assert seen == [own / "across" / "000.png", own / "across" / "003a.png"]


def test_it_is_reused(own: Path) -> None:
    taken(own)
    before = {file: file.stat().st_ino for file in files("")}
    taken(own)
    assert {file: file.stat().st_ino for file in files("")} == before
    assert len(before) == 2 * 10


def test_parts_that_nobody_used_for_a_day_are_removed(own: Path) -> None:
    taken(own)
    older = files("")
    picture(2, 9).save(own / "across" / "000.png")
    for file in older:
        os.utime(file, (time.time() - 90_000, time.time() - 90_000))
    taken(own)
    assert len(set(older) - set(files(""))) == 2, "the files of one part"
    assert len(files("")) == 2 * 10


def test_two_listings_of_a_folder_take_turns(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, expected = open_table(own), decoded(own)
    parts = [whole, whole.select(np.arange(1, 40)), whole.select(np.arange(1, 21)), whole]
    opened = [open_cache(table, PREPROCESSING, 2) for table in parts]
    for result, rows in zip(opened, (np.arange(40), np.arange(1, 40), np.arange(1, 21), np.arange(40)), strict=True):
        np.testing.assert_array_equal(result.pixels.take(np.arange(len(rows))), expected[rows])
        assert len(result.thumbnails()) == len(rows)
    seen = count_decoded(monkeypatch)
    for table in parts:
        open_cache(table, PREPROCESSING, 2)
    assert not seen


def test_images_are_released_once_they_are_written(tmp_path: Path) -> None:
    written: list[weakref.ref[NDArray[np.uint8]]] = []

    def images() -> Iterator[cache.Decoded]:
        for row in range(20):
            image = np.full((8, 8, 3), row, np.uint8)
            written.append(weakref.ref(image))
            yield cache.Decoded(row, image)
            del image
            assert sum(each() is not None for each in written) <= 1

    cache.write_part(tmp_path / "part.json", images())
    assert len(written) == 20


def test_equal_images_in_memory(own: Path) -> None:
    table = Table(
        "same",
        ("a", "b"),
        [f"{i}" for i in range(16)],
        np.arange(16) % 2,
        np.full(16, ""),
        pixels=np.zeros((16, 8, 8, 3), np.uint8),
    )
    result = open_cache(table, PREPROCESSING, 1)
    assert result.rows.tolist() == [*range(16)]
    assert not result.pixels.take(np.arange(16)).any()
    assert len(files(".u8")) == 1


def test_unreadable_images_in_several_parts(own: Path) -> None:
    for name in ("across/000.png", "down/001.png", "down/019.png"):
        (own / name).write_text("broken")
    table = open_table(own)
    for _ in range(2):
        result = open_cache(table, PREPROCESSING, 2)
        assert [skipped.image for skipped in result.skipped] == ["across/000.png", "down/001.png", "down/019.png"]
        assert result.rows.tolist() == [row for row in range(40) if row not in (0, 21, 39)]
        for position, row in enumerate(result.rows):
            np.testing.assert_array_equal(result.pixels.image(position), pixels(table.source(row), PREPROCESSING))


def test_a_folder_with_a_long_name(own: Path) -> None:
    photos = own.rename(own.with_name("苹" * 80))  # 240 bytes
    np.testing.assert_array_equal(taken(photos), decoded(photos))


# Damage


def test_damaged_parts_give_the_right_pixels(own: Path) -> None:
    rng = random.Random(0)
    whole = taken(own)
    for attempt in range(60):
        file = rng.choice(files((".json", ".u8")[attempt % 2]))
        file.write_bytes(damaged(file.read_bytes(), rng, cut=attempt % 8 >= 4))
        np.testing.assert_array_equal(taken(own), whole)
    for suffix in (".json", ".u8"):
        files(suffix)[3].unlink()
        np.testing.assert_array_equal(taken(own), whole)
    files(".json")[0].write_text("[" * 100_000)
    np.testing.assert_array_equal(taken(own), whole)


def test_a_damaged_image_is_said_and_mended(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, file = taken(own), files(".u8")[0]
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    capsys.readouterr()
    np.testing.assert_array_equal(taken(own), whole)
    assert capsys.readouterr().err.count(f"{file} is damaged: its images are decoded again") == 1
    seen = count_decoded(monkeypatch)
    np.testing.assert_array_equal(taken(own), whole)
    assert len(seen) == 4, "the images of one part"
    assert file.read_bytes() == content
    assert "damaged" not in capsys.readouterr().err


def test_a_damaged_image_whose_file_changed_is_refused(own: Path) -> None:
    table = open_table(own)
    opened = open_cache(table, PREPROCESSING, 2).pixels
    for file in files(".u8"):
        file.write_bytes(bytes(len(file.read_bytes())))
    picture(2, 9).save(own / "across" / "000.png")
    with pytest.raises(DataError, match=r"photos: across/000\.png has changed since it was cached: start again"):
        opened.image(0)
    np.testing.assert_array_equal(opened.image(1), decoded(own)[1])


def test_a_damaged_image_in_a_folder_that_cannot_be_written(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = taken(own)
    for file in files(".u8"):
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refused)
    monkeypatch.setattr(os, "utime", refused)
    (files(".u8")[0].parent / "@eaDir").mkdir()  # as some network drives have
    np.testing.assert_array_equal(taken(own), whole)


def test_a_damaged_image_is_not_copied_to_a_new_part(own: Path) -> None:
    taken(own)
    for file in files(".u8"):
        file.write_bytes(bytes(len(file.read_bytes())))
    picture(2, 10).save(own / "across" / "000a.png")
    np.testing.assert_array_equal(taken(own), decoded(own))


# Killed processes, and several


def build(photos: Path) -> subprocess.Popen[str]:
    """Start to build a cache, in parts of four images."""
    return subprocess.Popen([sys.executable, "-c", BUILD, photos], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_its_parts(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = build(own)
    while len(files(".json")) < 3 and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    kept = len(files(".json"))
    assert kept >= 3
    seen = count_decoded(monkeypatch)
    np.testing.assert_array_equal(taken(own), decoded(own))
    assert len(seen) == 40 - 4 * kept
    assert not files(".part")


def test_processes_build_it_together(own: Path) -> None:
    outputs = [(process.communicate(), process.returncode) for process in [build(own), build(own)]]
    assert [code for _, code in outputs] == [0, 0], outputs
    assert len({out for (out, _), _ in outputs}) == 1
    np.testing.assert_array_equal(taken(own), decoded(own))


def test_parts_that_others_write_come_last(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, indexes = taken(own), files(".json")
    contents = [index.read_bytes() for index in indexes]
    for index in indexes:
        index.unlink()
    for index in indexes[:2]:
        index.with_name(f"{index.stem}.u8.elsewhere-1.part").touch()
    order: list[Path] = []
    original = cache.write_part

    def write_part(index: Path, images: Iterable[cache.Decoded]) -> None:
        indexes[1].write_bytes(contents[1])  # as the other process finishes it
        order.append(index)
        original(index, images)

    monkeypatch.setattr(cache, "write_part", write_part)
    np.testing.assert_array_equal(taken(own), whole)
    assert sorted(order[:-1]) == indexes[2:]
    assert order[-1] == indexes[0]


def test_parts_that_another_process_removes_are_built_again(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[Path] = []
    original = cache.write_part

    def write_part(index: Path, images: Iterable[cache.Decoded]) -> None:
        original(index, images)
        if len(lost) < 3 and len(files(".json")) > 1:
            lost.append(next(file for file in files(".json") if file != index))
            lost[-1].unlink()

    monkeypatch.setattr(cache, "write_part", write_part)
    np.testing.assert_array_equal(taken(own), decoded(own))
    assert len(lost) == 3


def test_threads_build_it_together(own: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        results = [*pool.map(taken, [own] * 3)]
    for result in results:
        np.testing.assert_array_equal(result, decoded(own))


def test_temporary_files_of_dead_processes_are_removed(own: Path) -> None:
    taken(own)
    folder = files(".json")[0].parent
    dead, alive, elsewhere = (folder / f"k.{host}-{pid}.part" for host, pid in ((HOST, 2**22 + 1), (HOST, 1), ("other", 1)))
    for part in (dead, alive, elsewhere):
        part.touch()
    taken(own)
    assert [part.exists() for part in (dead, alive, elsewhere)] == [False, True, True]


# No space


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), DiskFull("1 GB are needed")])
def test_a_disk_that_fills_up_while_it_is_built(own: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    original = cache.write_part

    def write_part(index: Path, images: Iterable[cache.Decoded]) -> None:
        if len(files(".json")) == 4:
            raise error
        original(index, images)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "write_part", write_part)
        assert isinstance(open_cache(open_table(own), PREPROCESSING, 1, "auto").pixels, OnDemand)
        with pytest.raises(DataError, match="free some space"):
            open_cache(open_table(own), PREPROCESSING, 1)
    seen = count_decoded(monkeypatch)
    np.testing.assert_array_equal(taken(own), decoded(own))
    assert len(seen) == 40 - 4 * 4, "four parts were kept"


def test_older_parts_make_room(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken(own)
    older = files("")
    for file in own.rglob("*.png"):
        os.utime(file, (0, 0))  # so that no part is of use
    usage = shutil.disk_usage(own)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0 if older[0].exists() else usage.free))
    np.testing.assert_array_equal(taken(own), decoded(own))
    assert not set(older) & set(files(""))


# Refused


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="ALEXNET_CACHE"):
        open_cache(open_table(photos), PREPROCESSING, 1)


def test_a_file_of_another_user_is_no_full_disk(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_part(index: Path, preprocessing: Preprocessing) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(index))

    monkeypatch.setattr(cache, "read_part", read_part)
    expected = "Permission denied; set the environment variable ALEXNET_CACHE to another folder, which you may write to$"
    with pytest.raises(DataError, match=expected):
        open_cache(open_table(photos), PREPROCESSING, 1)


def test_larger_than_the_disk_is_refused(photos: Path) -> None:
    with pytest.raises(DataError, match=r"[\d.]+ GB are needed, but only [\d.]+ GB are free"):
        open_cache(open_table(photos), PREPROCESSING.model_copy(update={"cache_size": 1_000_000}), 1)


def test_full_images_larger_than_the_disk_are_refused(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(own)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=40 * 40 * 40 * 3 - 1))
    with pytest.raises(DataError, match=r"[\d.]+ GB are needed, but only [\d.]+ GB are free"):
        open_cache(open_table(own), PREPROCESSING.model_copy(update={"cache_size": "full"}), 2)
