"""Built-in datasets, with tiny files of the official layouts and a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alexnet.data import builtin, download
from alexnet.data.builtin import CIFAR_FILES, CIFAR_FOLDER, load
from alexnet.errors import DataError

CIFAR_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ROWS = 4  # images in a batch


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut` closes each connection after that many bytes, `stall` makes it wait instead."""

    files: dict[str, bytes]
    ranges: list[str | None]
    parts = True
    cut: int | None = None
    stall: threading.Event

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that leaves early is what some tests are about


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.parts else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Encoding", "x-gzip")  # as Apache says of any .gz: not to be undone
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:] if self.server.cut is None else content[start : start + self.server.cut])
        if self.server.cut is not None:
            self.server.stall.wait(10)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.files, server.ranges, server.stall = {}, [], threading.Event()
    server.stall.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.stall.set()
    server.shutdown()
    server.server_close()
    thread.join()


def url(server: Server, name: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{name}"


def cifar_pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, ROWS, 3072), dtype=np.uint8)


def cifar_numbers(batch: int) -> list[int]:
    return [(batch * ROWS + i) % 10 for i in range(ROWS)]


def cifar_pickles() -> dict[str, bytes]:
    """The seven files of CIFAR-10 with four images in each batch, as Python 3 writes them for Python 2."""
    files = {"batches.meta": {b"label_names": [name.encode() for name in CIFAR_LABELS], b"num_vis": 3072}}
    for i, (name, pixels) in enumerate(zip(CIFAR_FILES[1:], cifar_pixels(), strict=True)):
        names = [f"{j}.png".encode() for j in range(ROWS)]
        files[name] = {b"batch_label": name.encode(), b"labels": cifar_numbers(i), b"data": pixels, b"filenames": names}
    return {name: pickle.dumps(content, protocol=2) for name, content in files.items()}


def python2_batch(pixels: np.ndarray, numbers: list[int]) -> bytes:
    """A batch in the opcodes of Python 2 and NumPy 1, as in the official archive: byte strings, numpy.core, u1 with 0, 1."""
    content = pixels.tobytes()
    return (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K" + bytes([len(pixels)]) + b"M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(content)) + content + b"tb"
        b"U\x06labelsq\x08](" + b"".join(b"K" + bytes([n]) for n in numbers) + b"eu."
    )


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def cifar_archive(files: dict[str, bytes], others: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in {**(others or {}), **{f"{CIFAR_FOLDER}/{name}": c for name, c in files.items()}}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def set_source(monkeypatch: pytest.MonkeyPatch, name: str, contents: bytes, **fields: Any) -> None:
    """Let the table of sources expect `contents`."""
    sha256 = hashlib.sha256(contents).hexdigest()
    monkeypatch.setitem(builtin.SOURCES, name, builtin.SOURCES[name]._replace(sha256=sha256, size=len(contents), **fields))


@pytest.fixture
def archive(server: Server, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small CIFAR-10 archive, which the server has and the table of sources expects."""
    content = cifar_archive(cifar_pickles())
    server.files["/cifar.tar.gz"] = content
    set_source(monkeypatch, "cifar10", content, url=url(server, "cifar.tar.gz"))
    return content


def assert_small_cifar(table: builtin.Table) -> None:
    assert table.labels == CIFAR_LABELS
    assert table.counts() == {"train": 5 * ROWS, "test": ROWS}
    assert table.images[0] == "train/00000"
    assert table.images[-1] == "test/00003"
    assert table.targets.tolist() == [n for i in range(6) for n in cifar_numbers(i)]
    expected = cifar_pixels().reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert table.pixels is not None
    assert table.pixels.flags.c_contiguous
    assert table.pixels.dtype == np.uint8
    np.testing.assert_array_equal(table.pixels, expected)


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


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


def test_the_environment_names_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / CIFAR_FOLDER, cifar_pickles())
    monkeypatch.setenv("ALEXNET_DATA", str(tmp_path))
    assert_small_cifar(load("cifar10", None))


def test_the_pickles_of_python_2_and_old_numpy_are_read(tmp_path: Path) -> None:
    files = {name: python2_batch(cifar_pixels()[i], cifar_numbers(i)) for i, name in enumerate(CIFAR_FILES[1:])}
    names = "".join(f"S'{name}'\na" for name in CIFAR_LABELS)
    files["batches.meta"] = f"(dp1\nS'label_names'\np2\n(lp3\n{names}s.".encode()  # protocol 0
    write_folder(tmp_path, files)
    assert_small_cifar(load("cifar10", tmp_path))


def test_an_array_in_fortran_order_has_the_same_pixels(tmp_path: Path) -> None:
    files = cifar_pickles()
    for i, name in enumerate(CIFAR_FILES[1:]):
        batch = {"data": np.asfortranarray(cifar_pixels()[i]), "labels": cifar_numbers(i)}  # keys may be str, too
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
    """Pickles to a call of `function`."""

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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    assert path.exists()  # the user's file is the user's to remove


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


@pytest.mark.skipif("ALEXNET_TEST_DATA" not in os.environ, reason="ALEXNET_TEST_DATA names no folder with cifar-10-batches-py")
def test_cifar10_of_the_official_size_has_6000_images_a_class() -> None:
    table = load("cifar10", Path(os.environ["ALEXNET_TEST_DATA"]))
    assert table.counts() == {"train": 50000, "test": 10000}
    assert table.pixels is not None
    assert table.pixels.shape == (60000, 32, 32, 3)
    assert table.labels == CIFAR_LABELS
    assert np.bincount(table.targets).tolist() == [6000] * 10
    assert np.bincount(table.targets[table.rows("test")]).tolist() == [1000] * 10


# Downloads


def test_a_download_ends_in_its_place_and_is_not_repeated(tmp_path: Path, archive: bytes, server: Server) -> None:
    root = tmp_path / "new" / "folder"
    assert_small_cifar(load("cifar10", root))
    assert_small_cifar(load("cifar10", root))
    assert [path.name for path in root.iterdir()] == ["cifar-10-python.tar.gz"]
    assert (root / "cifar-10-python.tar.gz").read_bytes() == archive
    assert server.ranges == [None]


def test_a_download_cut_half_way_is_resumed_with_the_bytes_that_lack(
    tmp_path: Path, archive: bytes, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.cut = half = len(archive) // 2
    with pytest.raises(DataError, match="repeat the command to resume") as error:
        load("cifar10", tmp_path)
    text = one_line(error)
    assert url(server, "cifar.tar.gz") in text
    assert str(tmp_path) in text
    assert "--data-root" in text
    assert "ALEXNET_DATA" in text
    part = tmp_path / "cifar-10-python.tar.gz.part"
    kept = part.read_bytes()
    assert kept == archive[: len(kept)]
    assert half - 2**16 <= len(kept) <= half
    assert len(kept) > 0
    server.cut = None
    assert_small_cifar(load("cifar10", tmp_path))
    assert server.ranges == [None, f"bytes={len(kept)}-"]
    assert (tmp_path / "cifar-10-python.tar.gz").read_bytes() == archive
    assert not part.exists()
    written = capsys.readouterr()
    assert f"from byte {len(kept):,}" in written.err
    assert written.out == ""


def test_a_server_that_ignores_ranges_sends_the_file_anew(tmp_path: Path, archive: bytes, server: Server) -> None:
    server.parts = False
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(b"something else" * 1000)
    assert_small_cifar(load("cifar10", tmp_path))
    assert server.ranges == ["bytes=14000-"]
    assert (tmp_path / "cifar-10-python.tar.gz").read_bytes() == archive


def test_a_part_that_is_whole_already_is_taken(tmp_path: Path, archive: bytes, server: Server) -> None:
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(archive)
    assert_small_cifar(load("cifar10", tmp_path))
    assert server.ranges == [f"bytes={len(archive)}-"]
    assert (tmp_path / "cifar-10-python.tar.gz").read_bytes() == archive


def test_a_wrong_checksum_is_refused_and_the_file_removed(tmp_path: Path, archive: bytes, server: Server) -> None:
    server.files["/cifar.tar.gz"] = archive[:-1] + bytes([archive[-1] ^ 1])
    with pytest.raises(DataError, match=r"wrong checksum.*repeat") as error:
        load("cifar10", tmp_path)
    assert url(server, "cifar.tar.gz") in one_line(error)
    assert list(tmp_path.iterdir()) == []
    server.files["/cifar.tar.gz"] = archive
    assert_small_cifar(load("cifar10", tmp_path))


def test_a_server_that_sends_without_end_is_left(tmp_path: Path, archive: bytes, server: Server) -> None:
    server.files["/cifar.tar.gz"] = archive + bytes(4 * builtin.MB)
    with pytest.raises(DataError, match="wrong checksum"):
        load("cifar10", tmp_path)


def test_a_server_that_stalls_is_left_after_the_timeout(
    tmp_path: Path, archive: bytes, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.cut = len(archive) // 2
    server.stall.clear()
    with pytest.raises(DataError, match=r"Timeout.*repeat the command to resume"):
        load("cifar10", tmp_path)


def test_no_network_is_one_line_that_says_where_to_put_the_file(tmp_path: Path, archive: bytes, server: Server) -> None:
    server.shutdown()
    server.server_close()  # the port is closed now
    with pytest.raises(DataError, match="Connection") as error:
        load("cifar10", tmp_path)
    text = one_line(error)
    assert url(server, "cifar.tar.gz") in text
    assert str(tmp_path) in text
    assert "--data-root" in text


def test_an_http_error_is_named_and_its_page_not_kept(tmp_path: Path, archive: bytes, server: Server) -> None:
    server.files.clear()
    with pytest.raises(DataError, match="status 404"):
        load("cifar10", tmp_path)
    assert (tmp_path / "cifar-10-python.tar.gz.part").read_bytes() == b""


def test_a_data_root_that_cannot_be_written_is_named(tmp_path: Path, archive: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    for root in (file, file / "below"):
        with pytest.raises(DataError, match=f"{file}.*--data-root") as error:
            load("cifar10", root)
        one_line(error)


# Fashion-MNIST


@pytest.fixture
def idx(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The four IDX files with 20 and 10 images, which the server has as .gz and the table of sources expects."""
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
