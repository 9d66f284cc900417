"""Downloads, from a server on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from alexnet.data import builtin, download
from alexnet.data.builtin import load
from alexnet.errors import DataError
from official import (
    Server,
    assert_small_cifar,
    one_line,
    url,
)


def test_download_is_saved_and_not_repeated(tmp_path: Path, archive: bytes, server: Server) -> None:
    root = tmp_path / "new" / "folder"
    assert_small_cifar(load("cifar10", root))
    assert_small_cifar(load("cifar10", root))
    assert [path.name for path in root.iterdir()] == ["cifar-10-python.tar.gz"]
    assert (root / "cifar-10-python.tar.gz").read_bytes() == archive
    assert server.ranges == [None]


def test_interrupted_download_requests_the_missing_bytes(
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


def test_server_without_ranges_resends_the_whole_file(tmp_path: Path, archive: bytes, server: Server) -> None:
    server.parts = False
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(b"something else" * 1000)
    assert_small_cifar(load("cifar10", tmp_path))
    assert server.ranges == ["bytes=14000-"]
    assert (tmp_path / "cifar-10-python.tar.gz").read_bytes() == archive


def test_complete_part_file_is_used(tmp_path: Path, archive: bytes, server: Server) -> None:
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


def test_endless_response_is_cut_off(tmp_path: Path, archive: bytes, server: Server) -> None:
    server.files["/cifar.tar.gz"] = archive + bytes(4 * builtin.MB)
    with pytest.raises(DataError, match="wrong checksum"):
        load("cifar10", tmp_path)


def test_stalled_server_times_out(tmp_path: Path, archive: bytes, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
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
