"""`make tutorials`: damaged runs and failures end in a row of the table, and leave no process behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from proof import tutorials

import alexnet

NAME = "cats-dogs"


@pytest.fixture
def run(trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run in place of a tutorial's."""
    monkeypatch.setattr(tutorials, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(tutorials, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(tutorials, "SECONDS_BETWEEN_LOOKS", 0)
    return Path(shutil.copytree(trained.path, tmp_path / "runs" / NAME))


def test_row_of_a_finished_run(run: Path, tmp_path: Path) -> None:
    assert "; finished, evaluated: train " in tutorials.table_row(NAME)
    assert {path.name for path in (tmp_path / "kept" / NAME).iterdir()} == {"metrics.csv", "recipe.toml", "final.json"}


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("metrics.csv", "epoch,train_top1,val_top1,seconds\n", "epoch 0"),
        ("metrics.csv", "epoch,tra", "epoch 0"),
        ("metrics.csv", "epoch,train_top1\n1", "metrics.csv cannot be read"),
        ("recipe.toml", "[data", "recipe.toml cannot be read"),
        ("model.safetensors", "", "model.safetensors is damaged"),
    ],
)
def test_row_of_a_damaged_run(run: Path, file: str, content: str, expected: str) -> None:
    (run / file).write_text(content)
    assert expected in tutorials.table_row(NAME)


def test_training_without_images_does_not_stop_the_others(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "summary.json").unlink()
    monkeypatch.setattr(tutorials, "command", lambda name, data: [sys.executable, "-c", "print('trained')"])
    original = tutorials.start

    def start(name: str, data: Path) -> subprocess.Popen[bytes]:
        if name == "annotated":
            tutorials.imagenette(data)
        return original(name, data)

    monkeypatch.setattr(tutorials, "start", start)
    assert not tutorials.train_all(["annotated", NAME], tmp_path / "none", 1, 1)
    assert "annotated failed: [Errno 2] No such file" in capsys.readouterr().out
    assert (tmp_path / "runs" / f"{NAME}.log").read_text() == "trained\n"


def test_no_training_goes_on_after_an_error(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "summary.json").unlink()
    started, original = list[subprocess.Popen[bytes]](), tutorials.start
    monkeypatch.setattr(tutorials, "command", lambda name, data: [sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(tutorials, "start", lambda *given: started.append(original(*given)) or started[-1])
    monkeypatch.setattr(tutorials, "progress", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tutorials.train_all([NAME], tmp_path, 1, 1)
    assert started[0].returncode is not None
