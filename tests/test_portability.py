"""Other systems, simulated: no compiler, a read-only cache, open files, several users."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from alexnet.data.cache import _remove_others
from alexnet.files import write_json
from alexnet.network.fast import kernels
from alexnet.run import RunFolder
from alexnet.training import checkpoint
from alexnet.training.monitor import Monitor
from alexnet.training.train import _run_lock


@pytest.fixture
def fresh_kernels() -> Iterator[None]:
    """Reload the kernels before the test and after it."""
    kernels._library.cache_clear()
    yield
    kernels._library.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernels are for Linux")
@pytest.mark.usefixtures("fresh_kernels")
def test_missing_kernels_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "c++"
    program.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.delenv("ALEXNET_KERNELS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert kernels.library() is None
    assert kernels.missing_reason() == "no C++ compiler was found: c++, g++ or clang++"
    kernels._library.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kernels.missing_reason() == f"{program} could not compile them"
    kernels._library.cache_clear()
    program.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    monkeypatch.setenv("ALEXNET_CACHE", str(program))
    assert kernels.missing_reason() == f"{program / 'kernels'}: Not a directory"
    assert kernels.library() is None
    monkeypatch.setenv("ALEXNET_KERNELS", "0")
    assert kernels.missing_reason() is None, "no kernels are wanted, so none are missing"


def forbid_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make removing files fail, as on Windows for open files and in sticky folders for other users' files."""

    def refused(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refused)


def test_lock_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_removal(monkeypatch)
    for _ in range(2):
        with _run_lock(RunFolder(tmp_path)):
            pass


def test_older_cache_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.u8").touch()
    forbid_removal(monkeypatch)
    _remove_others(tmp_path, [tmp_path / "new.json"], unused=0)
    assert (tmp_path / "old.u8").exists()


def test_loaded_checkpoint_is_not_memory_mapped(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, {"w": torch.ones(1000)}, {})
    result = checkpoint.read(tmp_path)
    assert result is not None
    file = tmp_path / "checkpoint" / "last" / "state.safetensors"
    with file.open("r+b") as opened:
        opened.write(bytes(os.path.getsize(file)))
    assert torch.equal(result[0]["w"], torch.ones(1000))


def test_json_newlines_on_every_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    written = Path.write_text

    def noted(self: Path, *arguments: str, **options: str) -> int:
        calls.append((options["encoding"], options["newline"]))
        return written(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", noted)
    write_json(tmp_path / "x.json", {"a": "ü"})
    assert calls == [("utf-8", "\n")]
    assert (tmp_path / "x.json").read_bytes() == '{\n  "a": "ü"\n}\n'.encode()


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 there")
def test_run_folder_not_utf8_has_no_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / os.fsdecode(b"r\xfcn")
    folder.mkdir()
    with Monitor(folder, torch.device("cpu")) as monitor:
        monitor.open_tensorboard(folder / "tensorboard", 1)
        monitor.say("goes on")
    message = capsys.readouterr().err.splitlines()
    assert message == ["no TensorBoard curves, as the run folder's name is not UTF-8", "goes on"]
