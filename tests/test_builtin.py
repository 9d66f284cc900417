"""Built-in datasets, from tiny files in their official layouts."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alexnet.data import builtin
from alexnet.data.builtin import CIFAR_FILES, CIFAR_FOLDER, default_root, load
from alexnet.data.sources import open_table
from alexnet.errors import DataError
from official import (
    CIFAR_LABELS,
    ROWS,
    Server,
    assert_small_cifar,
    cifar_archive,
    cifar_numbers,
    cifar_pickles,
    cifar_pixels,
    one_line,
    python2_batch,
    set_source,
    url,
    write_folder,
)

# Digits


def test_digits_are_1797_grey_8x8_images_over_the_full_range_and_undeclared_in_split() -> None:
    table = load("digits", None)
    assert len(table) == 1797
    assert table.pixels is not None
    assert table.pixels.shape == (1797, 8, 8, 3)
    assert table.pixels.dtype == np.uint8
    assert (table.pixels.min(), table.pixels.max()) == (0, 255)
    assert len(np.unique(table.pixels)) == 17  # the levels 0 to 16
    assert (table.pixels == table.pixels[..., :1]).all()
    assert table.labels == tuple("0123456789")
    assert np.bincount(table.targets).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as scikit-learn states
    assert table.counts() == {}
    assert not table.mirror
    assert table.images[12] == "digits/00012"
    assert table.splits.dtype == np.dtype("<U5")  # wide enough for "train"


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match="cifar10"):
        load("cifar-10", None)


# CIFAR-10, local


@pytest.mark.parametrize("inside", [False, True])
def test_cifar10_is_read_from_the_unpacked_folder_or_its_parent(tmp_path: Path, inside: bool) -> None:
    folder = write_folder(tmp_path / CIFAR_FOLDER, cifar_pickles())
    assert_small_cifar(load("cifar10", folder if inside else tmp_path))


def test_the_folder_of_cifar10_is_a_dataset(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "copy", cifar_pickles())
    given, named = open_table(folder), load("cifar10", folder)
    assert (given.name, given.labels, given.images) == (named.name, named.labels, named.images)
    np.testing.assert_array_equal(given.pixels, named.pixels)
    np.testing.assert_array_equal(given.targets, named.targets)


def test_the_environment_names_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / CIFAR_FOLDER, cifar_pickles())
    monkeypatch.setenv("ALEXNET_DATA", str(tmp_path))
    assert_small_cifar(load("cifar10", None))


@pytest.mark.parametrize(
    ("system", "chosen", "folder"),
    [
        ("linux", "", "HOME/.cache/alexnet/data"),
        ("linux", "relative", "HOME/.cache/alexnet/data"),
        ("linux", "/caches", "/caches/alexnet/data"),
        ("darwin", "", "HOME/Library/Caches/alexnet/data"),
        ("win32", "", "HOME/AppData/Local/alexnet/alexnet/Cache/data"),
    ],
)
def test_downloads_go_to_the_cache_folder_of_each_system(
    system: str, chosen: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    for name, value in {"ALEXNET_DATA": "", "XDG_CACHE_HOME": chosen, "LOCALAPPDATA": "", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    assert default_root() == Path(folder.replace("HOME", str(tmp_path)))


def test_the_pickles_of_python_2_and_old_numpy_are_read(tmp_path: Path) -> None:
    files = {name: python2_batch(cifar_pixels()[i], cifar_numbers(i)) for i, name in enumerate(CIFAR_FILES[1:])}
    names = "".join(f"S'{name}'\na" for name in CIFAR_LABELS)
    files["batches.meta"] = f"(dp1\nS'label_names'\np2\n(lp3\n{names}s.".encode()  # protocol 0
    write_folder(tmp_path, files)
    assert_small_cifar(load("cifar10", tmp_path))


def test_an_array_in_fortran_order_has_the_same_pixels(tmp_path: Path) -> None:
    files = cifar_pickles()
    for i, name in enumerate(CIFAR_FILES[1:]):
        batch = {"data": np.asfortranarray(cifar_pixels()[i]), "labels": cifar_numbers(i)}  # keys may also be str
        files[name] = pickle.dumps(batch, protocol=2)
    assert_small_cifar(load("cifar10", write_folder(tmp_path, files)))


def test_the_packed_archive_is_read_without_unpacking_it_to_disk(tmp_path: Path, archive: bytes, server: Server) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    assert_small_cifar(load("cifar10", tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]
    assert server.ranges == []  # nothing was asked for


def test_labels_that_are_not_sorted_are_sorted_and_the_targets_follow(tmp_path: Path) -> None:
    files = cifar_pickles()
    files["batches.meta"] = pickle.dumps({b"label_names": [name.encode() for name in CIFAR_LABELS[::-1]]}, protocol=2)
    table = load("cifar10", write_folder(tmp_path, files))
    assert table.labels == CIFAR_LABELS
    assert table.targets.tolist() == [9 - n for i in range(6) for n in cifar_numbers(i)]


class Call:
    """An object that pickles as a call to `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [os.system, eval, np.load, getattr, np.frombuffer])
@pytest.mark.parametrize("name", ["batches.meta", "data_batch_3"])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path, name: str, function: Any, protocol: int) -> None:
    marker = tmp_path / "marker"
    code = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w').close()"
    files = cifar_pickles()
    files[name] = pickle.dumps({b"data": Call(function, code), b"labels": [0], b"label_names": []}, protocol=protocol)
    write_folder(tmp_path, files)
    with pytest.raises(DataError, match=f"{name}.*refused") as error:
        load("cifar10", tmp_path)
    one_line(error)
    assert not marker.exists()


GOOD = {b"data": np.zeros((ROWS, 3072), np.uint8), b"labels": [0] * ROWS}
BAD_BATCHES = {
    "a list": [1],
    "no data": {b"labels": [0] * ROWS},
    "data of another type": GOOD | {b"data": np.zeros((ROWS, 3072), np.int8)},
    "data of objects": GOOD | {b"data": np.full((ROWS, 3072), None)},
    "data of another shape": GOOD | {b"data": np.zeros((ROWS, 1024), np.uint8)},
    "data that is bytes": GOOD | {b"data": bytes(ROWS * 3072)},
    "no labels": {b"data": GOOD[b"data"]},
    "too few labels": GOOD | {b"labels": [0] * (ROWS - 1)},
    "labels as floats": GOOD | {b"labels": [0.0] * ROWS},
    "labels too large": GOOD | {b"labels": [10] * ROWS},
    "labels below zero": GOOD | {b"labels": [-1] * ROWS},
}


@pytest.mark.parametrize("kind", BAD_BATCHES)
def test_a_batch_of_another_form_is_refused_naming_the_file(tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path, cifar_pickles() | {"data_batch_2": pickle.dumps(BAD_BATCHES[kind], protocol=2)})
    with pytest.raises(DataError, match=r"data_batch_2: .*official") as error:
        load("cifar10", tmp_path)
    one_line(error)


@pytest.mark.parametrize("names", [None, [b"cat"] * 10, [b"cat"], b"cat"])
def test_names_of_classes_that_are_not_ten_are_refused(tmp_path: Path, names: Any) -> None:
    write_folder(tmp_path, cifar_pickles() | {"batches.meta": pickle.dumps({b"label_names": names}, protocol=2)})
    with pytest.raises(DataError, match=r"batches.meta: .*10 names"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("name", CIFAR_FILES)
def test_a_missing_file_of_the_folder_is_named(tmp_path: Path, name: str) -> None:
    files = cifar_pickles()
    del files[name]
    write_folder(tmp_path / CIFAR_FOLDER, files)
    with pytest.raises(DataError, match=f"{name}: missing"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("left", [0, 1, 100, 5000, -1])
def test_a_truncated_batch_is_refused(tmp_path: Path, left: int) -> None:
    files = cifar_pickles()
    write_folder(tmp_path, files | {"test_batch": files["test_batch"][:left]})
    with pytest.raises(DataError, match="test_batch: not readable") as error:
        load("cifar10", tmp_path)
    one_line(error)


def test_a_file_larger_than_any_batch_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "MAX_MEMBER", 1000)
    write_folder(tmp_path, cifar_pickles())
    with pytest.raises(DataError, match="data_batch_1: larger than"):
        load("cifar10", tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_pickle_is_refused_or_read_but_raises_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(cifar_pickles()["test_batch"])
    ends = [*range(250), *range(len(content) - 250, len(content))]  # between lie pixels alone
    for place in data.draw(st.lists(st.sampled_from(ends), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    write_folder(tmp_path, cifar_pickles() | {"test_batch": bytes(content)})
    message = "test_batch"
    try:
        assert load("cifar10", tmp_path).counts() == {"train": 5 * ROWS, "test": ROWS}
    except DataError as error:
        message = str(error)
    assert "test_batch" in message
    assert "\n" not in message


def test_a_local_archive_with_another_checksum_is_refused_and_stays(tmp_path: Path, archive: bytes) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(archive[: len(archive) // 2])
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz: damaged.*remove it") as error:
        load("cifar10", tmp_path)
    one_line(error)
    assert path.exists()  # never remove the user's own files


def test_a_truncated_archive_is_refused_even_if_its_checksum_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = cifar_archive(cifar_pickles())
    for share in (0.0, 0.001, 0.5, 0.99):
        cut = content[: int(len(content) * share)]
        (tmp_path / "cifar-10-python.tar.gz").write_bytes(cut)
        set_source(monkeypatch, "cifar10", cut)
        with pytest.raises(DataError, match=r"cifar-10-python.tar.gz") as error:
            load("cifar10", tmp_path)
        one_line(error)


def test_members_that_lead_outside_are_neither_read_nor_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "a" / "root"
    root.mkdir(parents=True)
    others = {"../outside": b"x", str(tmp_path / "absolute"): b"x", f"{CIFAR_FOLDER}/../../outside": b"x"}
    content = cifar_archive(cifar_pickles(), others)
    (root / "cifar-10-python.tar.gz").write_bytes(content)
    set_source(monkeypatch, "cifar10", content)
    assert_small_cifar(load("cifar10", root))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [root / "cifar-10-python.tar.gz"]


def test_links_and_huge_members_of_an_archive_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = cifar_pickles()
    del files["test_batch"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo(f"{CIFAR_FOLDER}/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "../../outside"
        archive.addfile(link)
        for name, pickled in files.items():
            member = tarfile.TarInfo(f"{CIFAR_FOLDER}/{name}")
            member.size = len(pickled)
            archive.addfile(member, io.BytesIO(pickled))
    content = buffer.getvalue()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(content)
    set_source(monkeypatch, "cifar10", content)
    with pytest.raises(DataError, match="test_batch: missing"):
        load("cifar10", tmp_path)
    monkeypatch.setattr(builtin, "MAX_MEMBER", 1000)
    with pytest.raises(DataError, match="data_batch_1: larger than"):
        load("cifar10", tmp_path)


@pytest.mark.long
@pytest.mark.skipif("ALEXNET_TEST_DATA" not in os.environ, reason="ALEXNET_TEST_DATA names no folder with cifar-10-batches-py")
def test_cifar10_of_the_official_size_has_6000_images_a_class() -> None:
    table = load("cifar10", Path(os.environ["ALEXNET_TEST_DATA"]))
    assert table.counts() == {"train": 50000, "test": 10000}
    assert table.pixels is not None
    assert table.pixels.shape == (60000, 32, 32, 3)
    assert table.labels == CIFAR_LABELS
    assert np.bincount(table.targets).tolist() == [6000] * 10
    assert np.bincount(table.targets[table.rows("test")]).tolist() == [1000] * 10


# Fashion-MNIST


@pytest.fixture
def idx(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The four IDX files with 20 and 10 images, which the server offers as .gz and the table of sources expects."""
    files = {}
    rng = np.random.default_rng(1)
    for split, count in (("train", 20), ("test", 10)):
        images = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + rng.bytes(count * 784)
        labels = struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(i % 10 for i in range(count))
        for kind, content in (("images", images), ("labels", labels)):
            name = Path(builtin.SOURCES[f"{split}-{kind}"].file).stem
            files[name] = content
            server.files[f"/{name}.gz"] = gzip.compress(content)
            set_source(monkeypatch, f"{split}-{kind}", content, url=url(server, f"{name}.gz"))
    return files


def assert_small_fashion(table: builtin.Table, idx: dict[str, bytes]) -> None:
    assert table.labels == tuple(sorted(builtin.FASHION_LABELS))
    assert table.counts() == {"train": 20, "test": 10}
    assert table.mirror
    assert [table.labels[i] for i in table.targets] == list(builtin.FASHION_LABELS) * 3
    assert table.pixels is not None
    assert table.pixels.shape == (30, 28, 28, 3)
    assert table.pixels.flags.c_contiguous
    grey = idx["train-images-idx3-ubyte"][16:] + idx["t10k-images-idx3-ubyte"][16:]
    for channel in range(3):
        assert table.pixels[..., channel].tobytes() == grey


@pytest.mark.parametrize("folder", [".", "fashion-mnist"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_packed_or_not(
    tmp_path: Path, idx: dict[str, bytes], server: Server, folder: str, suffix: str
) -> None:
    files = {name + suffix: gzip.compress(content, 1) if suffix else content for name, content in idx.items()}
    write_folder(tmp_path / folder, files)
    assert_small_fashion(load("fashion-mnist", tmp_path), idx)
    assert server.ranges == []


def test_idx_files_are_downloaded_and_kept_as_they_came(tmp_path: Path, idx: dict[str, bytes], server: Server) -> None:
    assert_small_fashion(load("fashion-mnist", tmp_path), idx)
    assert_small_fashion(load("fashion-mnist", tmp_path), idx)
    assert server.ranges == [None] * 4
    kept = {path.name: path.read_bytes() for path in (tmp_path / "fashion-mnist").iterdir()}
    assert kept == {path.removeprefix("/"): content for path, content in server.files.items()}


@pytest.mark.parametrize("damage", ["other", "truncated", "not gzip", "too much"])
def test_a_damaged_idx_file_is_refused_naming_it(tmp_path: Path, idx: dict[str, bytes], damage: str) -> None:
    name = "train-labels-idx1-ubyte"
    packed = {
        "other": gzip.compress(idx[name][:-1] + b"\x05"),
        "truncated": gzip.compress(idx[name])[:-12],
        "not gzip": b"\x1f\x8b" + bytes(50),
        "too much": gzip.compress(idx[name] + bytes(10_000_000)),
    }[damage]
    files = {f"{key}.gz": gzip.compress(content) for key, content in idx.items()}
    write_folder(tmp_path, files | {f"{name}.gz": packed})
    with pytest.raises(DataError, match=f"{name}.gz: damaged") as error:
        load("fashion-mnist", tmp_path)
    one_line(error)


def test_a_downloaded_idx_file_with_other_contents_is_removed(tmp_path: Path, idx: dict[str, bytes], server: Server) -> None:
    server.files["/t10k-labels-idx1-ubyte.gz"] = gzip.compress(bytes(18))
    with pytest.raises(DataError, match=r"t10k-labels.*wrong checksum"):
        load("fashion-mnist", tmp_path)
    names = {path.name for path in (tmp_path / "fashion-mnist").iterdir()}
    assert "t10k-labels-idx1-ubyte.gz" not in names
    assert not any(name.endswith(".part") for name in names)
