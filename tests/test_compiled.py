"""Training with the network compiled by PyTorch: the same losses, and resumed to the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import alexnet
from alexnet.errors import AlexNetError
from alexnet.training.compiled import compile_network
from conftest import metrics, started, stop_after, weights
from test_golden_losses import GOLDEN, RUNS, losses

CPU = torch.device("cpu")
SIZES = {"images.cache_size": 80, "images.crop": 80, "images.input": 80, "schedule.progressive_resize": [[0.5, 0.85]]}
COMPILED = {
    **SIZES,
    "model.norm": "batch",
    "train.compile": True,
    "train.epochs": 2,
    "model.dropout": 0.5,
    "optimizer.lr": 0.01,
}


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_compiled_losses_are_the_golden_ones(name: str) -> None:
    def compiled(network: alexnet.AlexNet) -> object:
        forward = compile_network(network, CPU, 1)
        return lambda images: forward(images, 1)

    np.testing.assert_allclose(losses(name, torch.float32, compiled), json.loads(GOLDEN.read_text())[name], rtol=0.02)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled run with two input sizes, dropout, and batches of two sizes; read-only."""
    out = tmp_path_factory.mktemp("compiled") / "run"
    started(out, photos, "paper", **COMPILED)
    return out


@pytest.mark.long
def test_compiled_training_equals_the_plain_one(whole: Path, photos: Path, tmp_path: Path) -> None:
    """With the same dropout."""
    started(tmp_path / "plain", photos, "paper", **{**COMPILED, "train.compile": False})
    for ours, theirs in zip(metrics(whole), metrics(tmp_path / "plain"), strict=True):
        for key in ("train_loss", "val_loss"):
            assert float(ours[key]) == pytest.approx(float(theirs[key]), rel=1e-4), key
    said = {run: json.loads((run / "environment.json").read_text())["compiled"] for run in (whole, tmp_path / "plain")}
    assert list(said.values()) == ["inductor", None]


@pytest.mark.long
@pytest.mark.parametrize("steps", [2, 5])
def test_resume_of_a_compiled_training_is_bit_identical(
    whole: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, "train_step", steps)
        with pytest.raises(AlexNetError, match="resume with"):
            started(tmp_path / "run", photos, "paper", **COMPILED)
    alexnet.resume(tmp_path / "run", device="cpu")
    assert metrics(tmp_path / "run") == metrics(whole)
    assert weights(tmp_path / "run") == weights(whole)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch looks for other compilers")
def test_without_a_compiler_the_error_is_one_line(photos: Path, tmp_path: Path) -> None:
    command = ["-m", "alexnet", "train", str(photos), "--set", "train.compile=true", "--out", str(tmp_path / "run")]
    nowhere = {**os.environ, "PATH": str(tmp_path), "CXX": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=nowhere)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("alexnet: train.compile is true, but PyTorch cannot compile for cpu here")
    assert last.endswith("install a C++ compiler, or train without: --set train.compile=false")
    assert not (tmp_path / "run").exists()
