"""TensorBoard's files, read back: curves, graph, images; and the utilisation of accelerators."""

from __future__ import annotations

import io
import math
import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.graph_pb2 import GraphDef

import alexnet
from alexnet import recipe
from alexnet.data.augment import DRAWS
from alexnet.data.batches import Batch
from alexnet.errors import AlexNetError
from alexnet.inference.evaluate import Evaluation
from alexnet.recipe import Augment
from alexnet.training.monitor import Monitor
from alexnet.training.tensorboard import TensorBoard
from conftest import SHORT, make_preprocessing, metrics, stop_after, weights

LOSS, ACCURACY = "epoch_loss", "epoch_accuracy"


def date_back(folder: Path, session: int) -> None:
    """Rename the files of a session, so that they sort by session: within one second they may not."""
    for file in folder.glob("*/events.out.tfevents.*.*"):
        file.rename(file.with_name(f"events.out.tfevents.{session}"))


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def column(run: alexnet.Run, name: str) -> list[tuple[int, float]]:
    """Return epochs and a column of `metrics.csv` in float32, the precision of TensorBoard's files."""
    return [(int(row["epoch"]), float(np.float32(row[name]))) for row in metrics(run.path)]


def test_tensorboard_tags_are_those_of_keras(trained: alexnet.Run) -> None:
    scalars = {split: set(read(trained.path / "tensorboard" / split).Tags()["scalars"]) for split in ("train", "validation")}
    assert scalars == {"train": {LOSS, ACCURACY, "epoch_learning_rate"}, "validation": {LOSS, ACCURACY}}


@pytest.mark.parametrize(
    ("split", "tag", "name"),
    [
        *(("train", LOSS, "train_loss"), ("validation", LOSS, "val_loss")),
        *(("train", ACCURACY, "train_top1"), ("validation", ACCURACY, "val_top1")),
        ("train", "epoch_learning_rate", "lr"),
    ],
)
def test_tensorboard_curves_equal_metrics_csv(trained: alexnet.Run, split: str, tag: str, name: str) -> None:
    assert points(trained.path / "tensorboard" / split, tag) == column(trained, name)


def test_tensorboard_command_opens_the_curves(trained: alexnet.Run) -> None:
    [line] = [line for line in (trained.path / "log.txt").read_text().splitlines() if "tensorboard" in line]
    words = shlex.split(line.partition("curves: ")[2])
    assert words[:2] == ["tensorboard", "--logdir"]
    assert words[3:] == ["--port", "6006"]
    assert {path.name for path in Path(words[2]).iterdir()} == {"train", "validation", "test"}


def test_tensorboard_graph_has_every_layer(trained: alexnet.Run) -> None:
    graph = GraphDef()
    graph.ParseFromString(read(trained.path / "tensorboard" / "train").Graph().SerializeToString())
    layers = trained.network.layer_names
    assert [node.name for node in graph.node] == ["images", *layers]
    assert [list(node.input) for node in graph.node] == [[], ["images"], *([name] for name in layers[:-1])]
    shapes = {node.name: [dim.size for dim in node.attr["_output_shapes"].list.shape[0].dim] for node in graph.node}
    side = trained.config.preprocessing.input
    assert shapes["images"] == [1, 3, side, side]
    assert shapes["fc8"] == [1, len(trained.labels)]


def test_tensorboard_batch_shows_its_first_images(tmp_path: Path) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8))
    preprocessing = make_preprocessing(mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))
    board = TensorBoard(tmp_path, 1)
    board.batch(Batch(pixels, torch.zeros(20), torch.zeros(20, len(DRAWS))), preprocessing, Augment(horizontal_flip=False))
    board.close()
    [event] = read(tmp_path / "train").Images("images/batch")
    picture = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    rows = [np.concatenate(list(pixels[start : start + 8].numpy()), axis=1) for start in (0, 8)]
    np.testing.assert_array_equal(picture, np.concatenate(rows), "sixteen images, eight in a row")


def test_tensorboard_of_a_run_has_batch_and_confusion_matrix(trained: alexnet.Run) -> None:
    [batch] = read(trained.path / "tensorboard" / "train").Images("images/batch")
    assert batch.height == trained.config.preprocessing.input
    [confusion] = read(trained.path / "tensorboard" / "test").Images("images/confusion_matrix")
    assert confusion.step == trained.summary["epochs"]


def test_confusion_matrix_of_labels_in_any_script(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    labels = ("猫", "a $b$", "c" * 200)
    board = TensorBoard(tmp_path, 1)
    board.confusion(Evaluation(np.eye(3, dtype=np.float32), np.arange(3), labels, (3, 67, 67)), "validation", 2)
    board.close()
    assert [image.step for image in read(tmp_path / "validation").Images("images/confusion_matrix")] == [2]
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_resumed_training_repeats_no_epoch(tmp_path: Path) -> None:
    """A process that is killed may have written epochs that come after its last checkpoint, or have had no checkpoint."""
    row = {"train_loss": 1.0, "train_top1": 0.5, "val_loss": 1.0, "val_top1": 0.5, "lr": 0.1}
    for session, first, last in ((1, 1, 2), (2, 1, 3), (3, 2, 4)):
        board = TensorBoard(tmp_path, first)
        for epoch in range(first, last + 1):
            board.epoch({"epoch": epoch, **row, "val_loss": float(session)})
        board.close()
        date_back(tmp_path, session)
    assert points(tmp_path / "validation", LOSS) == [(1, 2.0), (2, 3.0), (3, 3.0), (4, 3.0)]


def test_tensorboard_of_a_resumed_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run" / "tensorboard"
    with monkeypatch.context() as patch:
        stop_after(patch, "train_step", 6)
        with pytest.raises(AlexNetError, match="resume with"):
            alexnet.train(photos, out=tmp_path / "run", settings=SHORT)
    date_back(folder, 0)
    run = alexnet.resume(tmp_path / "run")
    assert points(folder / "train", LOSS) == column(run, "train_loss")
    assert points(folder / "validation", LOSS) == column(run, "val_loss")
    assert len(read(folder / "train").Images("images/batch")) == 1, "not drawn again"


def test_training_without_tensorboard(
    short: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so before the first epoch, and trains to the same weights."""
    capsys.readouterr()
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    run = alexnet.train(photos, out=tmp_path / "without", settings=SHORT)
    lines = capsys.readouterr().err.splitlines()
    [said] = [i for i, line in enumerate(lines) if "TensorBoard" in line or "tensorboard" in line]
    assert lines[said].startswith("no TensorBoard curves, as a package is missing (")
    assert lines[said].endswith("): pip install tensorboard")
    assert said < next(i for i, line in enumerate(lines) if line.startswith("epoch"))
    assert not (run.path / "tensorboard").exists()
    assert weights(run.path) == weights(short), "writing curves changes no number"


def refuse(device: torch.device) -> int:
    raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed or it can't be imported.")


def refuse_xpu(device: torch.device) -> int:
    raise ImportError("pyzes is required; install it with 'pip install pyzes'.")


def no_driver(device: torch.device) -> int:
    raise RuntimeError("NVML Shared Library Not Found\nand more")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (
            {"utilization": refuse},
            "(nvidia-ml-py does not seem to be installed or it can't be imported.): pip install nvidia-ml-py",
        ),
        ({"utilization": refuse_xpu}, "(pyzes is required; install it with 'pip install pyzes'.)"),
        ({"utilization": no_driver}, "(NVML Shared Library Not Found)"),
        ({}, "(PyTorch cannot measure it on mps)"),
    ],
    ids=["no package", "no package of Intel", "no driver", "not measured"],
)
def test_gpu_utilisation_missing_says_why_once(
    module: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(**module))
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda device: 1_500_000_000)
    with Monitor(tmp_path, torch.device("mps")) as monitor:
        assert monitor.usage() == {"utilisation": None, "memory_gb": 1.5}
        assert monitor.usage()["utilisation"] is None
    assert capsys.readouterr().err.splitlines() == [f"GPU utilisation is not shown {reason}"]


def test_gpu_utilisation_is_that_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[torch.device] = []

    def utilization(device: torch.device) -> int:
        asked.append(device)
        return 19

    def memory(device: torch.device) -> int:
        raise NotImplementedError("this backend counts no memory")

    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(utilization=utilization))
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", memory)
    with Monitor(tmp_path, torch.device("cuda", 1)) as monitor:
        assert monitor.usage() == {"utilisation": 0.19, "memory_gb": 0.0}
    assert set(asked) == {torch.device("cuda", 1)}
    assert not capsys.readouterr().err


def test_cpu_utilisation_needs_no_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Monitor(tmp_path, torch.device("cpu")) as monitor:
        utilisation = monitor.usage()["utilisation"]
    assert utilisation is not None
    assert math.isfinite(utilisation)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("others", "threads", "policy", "advised"),
    [(1.0, 4, "", True), (0.9, 4, "active", True), (1.0, 4, "PASSIVE", False), (0.3, 4, "", False), (1.0, 3, "", False)],
)
def test_processes_that_slow_training_down_are_named_once(
    others: float,
    threads: int,
    policy: str,
    advised: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_percent", lambda: 100 * (3.0 + others) / 4)
    monkeypatch.setattr(psutil.Process, "cpu_percent", lambda _: 300.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    row = dict.fromkeys(("lr", "train_loss", "train_top1", "val_loss", "val_top1", "images_per_second"), 0.5)
    with Monitor(tmp_path, torch.device("cpu")) as watching:
        for epoch in (1, 2, 3):
            watching.epoch({**row, "epoch": epoch, **watching.usage()}, recipe.Train(), 1.0)
            said = capsys.readouterr().err
            assert said.count("other processes use") == said.count("OMP_WAIT_POLICY=passive") == (advised and epoch == 2)
