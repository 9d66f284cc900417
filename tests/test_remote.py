"""Shards on a server and in an object store: the same as in a folder, and servers that fail."""

from __future__ import annotations

import http.server
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import alexnet
from alexnet.data import remote
from alexnet.data.sources import open_table
from alexnet.data.table import Table
from alexnet.errors import AlexNetError, DataError
from conftest import SHORT, weights
from official import no_proxy

__all__ = ["no_proxy"]  # a fixture

RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Server(http.server.ThreadingHTTPServer):
    """A server of the files in a folder, with ranges, as object stores have; `failures` answers fail."""

    folder: Path
    failures = 0
    cut = False  # whether answers end half-way
    asked = 0
    refused = ""  # a file that is neither sent nor said to be missing

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.server.asked += 1
        file = self.server.folder / self.path.lstrip("/").partition("?")[0]
        if self.server.failures or file.name == self.server.refused or not file.is_file():
            status = 503 if self.server.failures else 403 if file.name == self.server.refused else 404
            self.server.failures = max(0, self.server.failures - 1)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, size = file.read_bytes(), file.stat().st_size
        found = RANGE.fullmatch(self.headers.get("Range", ""))
        first, last = (int(found[1]), min(int(found[2] or size - 1), size - 1)) if found else (0, size - 1)
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", f'"{size}-{file.stat().st_mtime_ns}"')
        self.end_headers()
        part = content[first : last + 1]
        if body and self.server.cut:
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of three shards of the photos."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("alexnet.data.pack.MOST", 16)
    monkeypatch.setattr(remote, "WAIT", 0.01)
    alexnet.shard(photos, tmp_path / "shards", side=None)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.folder = tmp_path / "shards"
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def images(table: Table) -> list[tuple[str, str, bytes]]:
    rows = zip(table.images, table.targets, table.sources(), strict=True)
    return [(name, table.labels[target], bytes(source)) for name, target, source in rows]  # type: ignore[arg-type]


def test_shards_on_a_server(server: Server) -> None:
    assert images(open_table(f"{server.url}/images-{{000000..000002}}.tar")) == images(
        open_table(server.folder / "images-{000000..000002}.tar")
    )
    assert len(open_table(f"{server.url}/images-000001.tar")) == 16


def test_a_listing_is_kept_until_the_shard_changes(server: Server) -> None:
    name = f"{server.url}/images-000000.tar"
    before, asked = open_table(name), server.asked
    assert list(open_table(name).images) == list(before.images)
    assert server.asked - asked < asked
    (server.folder / "images-000000.tar").write_bytes((server.folder / "images-000002.tar").read_bytes())
    assert len(open_table(name)) != len(before)


@pytest.mark.long
def test_the_same_network_from_a_server(server: Server, tmp_path: Path) -> None:
    settings = {**SHORT, "data.cache": "none", "train.epochs": 2}
    run = alexnet.train(f"{server.url}/images-{{000000..000002}}.tar", out=tmp_path / "remote", settings=settings)
    local = alexnet.train(server.folder / "images-{000000..000002}.tar", out=tmp_path / "local", settings=settings)
    assert weights(run.path) == weights(local.path)
    assert run.recipe.data.dataset == f"{server.url}/images-{{000000..000002}}.tar"


def test_an_object_store(server: Server) -> None:
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for file in server.folder.iterdir():
        store.pipe(f"/bucket/{file.name}", file.read_bytes())
    assert images(open_table("memory://bucket/images-{000000..000002}.tar")) == images(open_table(server.folder))
    store.rm("/bucket", recursive=True)


def test_a_server_that_fails_for_a_while(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    table = open_table(f"{server.url}/images-000000.tar")
    wanted = images(table)
    server.failures = remote.TRIES - 1
    assert images(table) == wanted
    assert capsys.readouterr().err.count("trying again") == remote.TRIES - 1


@pytest.mark.parametrize("fault", ["cut", "failures", "gone"])
def test_a_server_that_fails(server: Server, fault: str, tmp_path: Path) -> None:
    """Training stops with one line, and what was saved goes on when the server is back."""
    name = f"{server.url}/images-{{000000..000002}}.tar"
    table = open_table(name)
    if fault == "gone":
        (server.folder / "images-000000.tar").unlink()
    else:
        setattr(server, fault, 10**6)
    with pytest.raises(DataError, match=r"images-000000\.tar cannot be read") as raised:
        table.source(0)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_server_that_fails_while_it_is_listed(server: Server) -> None:
    server.failures = 2
    assert len(open_table(f"{server.url}/images-{{000000..000002}}.tar")) == 40
    server.failures = 10**6
    with pytest.raises(DataError, match="cannot be read"):  # and not "missing"
        open_table(f"{server.url}/images-{{000000..000001}}.tar")


def test_a_store_that_does_not_say_whether_there_are_names(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.refused = "labels.txt"
    table = open_table(f"{server.url}/images-000000.tar")
    assert set(table.labels) == {"0", "1"}
    assert "so labels that are numbers have no names" in capsys.readouterr().err


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without a network: the shards are not said to be missing."""
    monkeypatch.setattr(remote, "WAIT", 0.01)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        with pytest.raises(DataError, match=r"images-0\.tar cannot be read: Cannot connect to host"):
            open_table(f"http://127.0.0.1:{unused.getsockname()[1]}/images-{{0..1}}.tar")


def test_a_server_without_ranges(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    table = open_table(f"{server.url}/images-000000.tar")
    monkeypatch.setitem(globals(), "RANGE", re.compile("never"))
    with pytest.raises(DataError, match="no support for ranges"):
        table.source(0)


def test_missing_shards(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    table = open_table(f"{server.url}/images-{{000001..000004}}.tar")
    assert [one.image for one in table.skipped] == ["images-000003.tar", "images-000004.tar"]
    assert "2 shards of" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"other\.tar: no such file"):
        open_table(f"{server.url}/other.tar")
    assert len(open_table(f"{server.url}/images-000000.tar?signature=a%2Fb")) == 16


def test_a_store_without_its_library() -> None:
    with pytest.raises(AlexNetError, match="cannot be opened") as raised:
        open_table("nothing://bucket/a.tar")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "is_remote"),
    [("https://a/b.tar", True), ("s3://a/b.tar", True), ("file:///a/b.tar", False), ("C://a/b.tar", False), ("a/b.tar", False)],
)
def test_what_is_remote(name: str, is_remote: bool) -> None:
    assert remote.is_remote(name) == is_remote
