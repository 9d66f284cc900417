"""Tiny files in the official layout of CIFAR-10, and a local server for them."""

from __future__ import annotations

import hashlib
import io
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

from alexnet.data import builtin
from alexnet.data.builtin import CIFAR_FILES, CIFAR_FOLDER
from alexnet.data.table import Table
from alexnet.errors import DataError

CIFAR_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ROWS = 4  # images in a batch


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Server(ThreadingHTTPServer):
    """A server for `files`; `cut` closes each connection after that many bytes, `stall` makes it hang instead."""

    files: dict[str, bytes]
    ranges: list[str | None]
    parts = True
    cut: int | None = None
    stall: threading.Event

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # some tests are about clients that disconnect early


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
        self.send_header("Content-Encoding", "x-gzip")  # as Apache declares any .gz file: must not be decompressed
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
    """A batch with the opcodes of Python 2 and NumPy 1, as in the official archive: byte strings, numpy.core, u1 with 0, 1."""
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
    """Make the table of sources expect `contents` as the file `name`."""
    sha256 = hashlib.sha256(contents).hexdigest()
    monkeypatch.setitem(builtin.SOURCES, name, builtin.SOURCES[name]._replace(sha256=sha256, size=len(contents), **fields))


@pytest.fixture
def archive(server: Server, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small CIFAR-10 archive that the server offers and the table of sources expects."""
    content = cifar_archive(cifar_pickles())
    server.files["/cifar.tar.gz"] = content
    set_source(monkeypatch, "cifar10", content, url=url(server, "cifar.tar.gz"))
    return content


def assert_small_cifar(table: Table) -> None:
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
