"""Learning-rate schedules, early stopping, and resuming under each schedule."""

from __future__ import annotations

import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import alexnet
from alexnet.data.batches import Batch
from alexnet.errors import AlexNetError
from alexnet.recipe import Augment, Recipe, Schedule
from alexnet.run import RunFolder
from alexnet.training import train as training
from alexnet.training.budget import Budget
from alexnet.training.checkpoint import TrainingState
from alexnet.training.distributed import SINGLE
from alexnet.training.schedule import EarlyStop, Plateau, epoch_settings, lr_at, work_done
from alexnet.training.trainer import Trainer
from conftest import metrics, mostly_long, started, stop_after


def lrs(rows: list[dict[str, str]]) -> list[float]:
    return [float(row["lr"]) for row in rows]


# The rate


def test_lr_table_rows_accumulate() -> None:
    rows = [
        {"epoch": 7, "lr_scale": {"bias": 3.0}},
        {"epoch": 3, "lr": 0.1, "lr_scale": {"bias": 2.0, "fc6": 0.5}},
        {"epoch": 5, "colour_noise": 0.0},
    ]
    schedule = Schedule(kind="constant", table=rows)
    assert [lr_at(schedule, 1.0, 0.5, epoch) for epoch in (1, 2, 3, 9)] == [1.0, 1.0, 0.1, 0.1]
    assert epoch_settings(schedule, 2).lr_scale == {}
    assert epoch_settings(schedule, 3).lr_scale == {"bias": 2.0, "fc6": 0.5}
    last = epoch_settings(schedule, 100)
    assert (last.lr, last.colour_noise, last.lr_scale) == (0.1, 0.0, {"bias": 3.0, "fc6": 0.5})
    assert epoch_settings(schedule, 4).colour_noise is None, "as the recipe says until then"


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.3, 1)), max_size=3), st.floats(0, 1))
def test_work_is_the_pixels_of_all_steps(rows: list[tuple[float, float]], progress: float) -> None:
    middles = (np.arange(4000) + 0.5) / 4000  # of the steps
    pixels = np.ones(4000)
    for until, scale in sorted(rows, reverse=True):
        pixels[middles < until] = scale**2
    expected = pixels[middles < progress].sum() / pixels.sum()
    result = work_done(Schedule(progressive_resize=rows), progress)
    assert result == pytest.approx(expected, abs=0.01)
    assert 0 <= result <= 1 + 1e-12


def test_time_left_allows_for_larger_inputs_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.model_validate({"train": {"epochs": 1}, "schedule": {"progressive_resize": [[0.5, 0.5]]}})
    budget, state = Budget(recipe, 10, 0, tmp_path / "journal.txt", 0.0, SINGLE), TrainingState()
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    budget.begin(state)
    monkeypatch.setattr(time, "monotonic", lambda: 110.0)
    state.batch = 5  # 10 s, and the other half takes four times as long
    assert budget.seconds_left(state) == pytest.approx(40)


@given(st.integers(1, 200), st.integers(1, 40), st.floats(0.01, 0.99))
def test_lr_step_schedule(epoch: int, every: int, factor: float) -> None:
    expected = 0.3
    for passed in range(2, epoch + 1):
        expected *= factor if passed % every == 1 % every else 1
    result = lr_at(Schedule(kind="step", every=every, factor=factor), 0.3, 0.9, epoch)
    assert result == pytest.approx(expected, rel=1e-9)


@given(st.just(0.0) | st.floats(1e-3, 0.99), st.floats(0, 1))
def test_lr_one_cycle(warmup: float, share: float) -> None:
    expected = np.interp(share, [0, warmup, 1], [0 if warmup else 1, 1, 0])
    assert lr_at(Schedule(warmup=warmup), 1.0, share, 1) == pytest.approx(expected, abs=1e-9)


EIGHTHS = st.integers(0, 24).map(lambda n: n / 8)  # exact in float32, in which Keras compares


@given(st.lists(EIGHTHS, max_size=40), st.integers(1, 5), EIGHTHS)
def test_early_stopping_patience(figures: list[float], patience: int, threshold: float) -> None:
    early, best, last = EarlyStop(patience, threshold), float("inf"), 0
    for epoch, figure in enumerate(figures, 1):
        if figure < best - threshold:
            best, last = figure, epoch
        assert early.update(figure) == (epoch - last >= patience)


@given(st.lists(EIGHTHS, max_size=40), st.integers(1, 5), EIGHTHS)
def test_lr_plateau_is_monotonic_above_its_floor(figures: list[float], patience: int, floor: float) -> None:
    plateau = Plateau(lr=1.0, factor=0.5, patience=patience, floor=floor)
    before = 1.0
    for figure in figures:
        now = plateau.update(figure)
        assert now in (before, max(before / 2, floor))
        assert min(floor, 1.0) <= now <= before
        before = now


def test_lr_plateau_in_training(photos: Path, tmp_path: Path) -> None:
    for threshold in (0.02, 1000.0):  # with the second, no epoch after the first is better
        changes = {"schedule.kind": "plateau", "schedule.patience": 1, "schedule.threshold": threshold, "schedule.factor": 0.5}
        more = {"train.epochs": 6, "optimizer.lr": 0.02, "schedule.floor": 0.006}
        rows = started(tmp_path / str(threshold), photos, **changes, **more)
        best, rate, expected = float("inf"), 0.02, []
        for row in rows:
            expected.append(rate)
            if float(row["val_loss"]) < best - threshold:
                best = float(row["val_loss"])
            else:
                rate = max(rate / 2, 0.006)
        assert lrs(rows) == pytest.approx(expected)
    assert lrs(rows) == [0.02, 0.02, 0.01, 0.006, 0.006, 0.006]
    log = (tmp_path / "1000.0" / "log.txt").read_text(encoding="utf-8")
    assert re.findall(r"val_loss has not improved for 1 epoch: lr (.*)", log) == ["0.02 -> 0.01", "0.01 -> 0.006"]


@pytest.mark.parametrize(("metric", "rate"), [("val_error", 0.003), ("train_loss", 1e-9)])
def test_early_stopping_in_training(metric: str, rate: float, photos: Path, tmp_path: Path) -> None:
    """The error of four images can fall four times at most; at this rate the loss changes only by chance."""
    changes = {"stop.metric": metric, "stop.patience": 2, "train.epochs": 60, "schedule.kind": "constant"}
    rows = started(tmp_path / "run", photos, **changes, **{"optimizer.lr": rate, "optimizer.muon_lr": 0.0})
    figures = [1 - float(row["val_top1"]) if metric == "val_error" else float(row[metric]) for row in rows]
    assert len(rows) < 60
    assert len(rows) == figures.index(min(figures)) + 1 + 2, "two epochs after the best"
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert f"{metric} has not improved for 2 epochs: training stops" in log
    assert log.count(f"  lr {rate:g}  train loss ") == len(rows), "small rates are not rounded to 0"
    assert alexnet.load(tmp_path / "run").summary["epochs"] == len(rows)


def test_lr_table_in_training(photos: Path, tmp_path: Path) -> None:
    table = [{"epoch": 2, "lr": 0.004}, {"epoch": 3, "lr_scale": {"conv1": 0.0}}, {"epoch": 4, "lr": 0.001}]
    rows = started(
        tmp_path / "run", photos,
        **{"schedule.kind": "constant", "schedule.table": table, "optimizer.lr": 0.01, "train.epochs": 4,
           "train.save_epochs": "cp-{epoch:02d}", "optimizer.momentum": 0.0, "optimizer.nesterov": False},
    )  # fmt: skip
    assert lrs(rows) == [0.01, 0.004, 0.004, 0.001]
    names = sorted(path.name for path in (tmp_path / "run" / "epochs").iterdir())
    assert names == [f"cp-{epoch:02}.safetensors" for epoch in range(1, 5)]
    kept = [safetensors.torch.load_file(tmp_path / "run" / "epochs" / name) for name in names]
    same = [torch.equal(a["features.conv1.weight"], b["features.conv1.weight"]) for a, b in pairwise(kept)]
    assert same == [False, True, True], "a factor of 0 freezes"
    assert not torch.equal(kept[2]["features.conv2.weight"], kept[3]["features.conv2.weight"])


def test_colour_noise_by_table(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[int, set[float]] = {}
    step = Trainer.train_step

    def watched(self: Trainer, batch: Batch, changes: Augment) -> None:
        drawn.setdefault(self.state.epoch, set()).add(changes.colour_noise)
        step(self, batch, changes)

    monkeypatch.setattr(Trainer, "train_step", watched)
    table = [{"epoch": 2, "lr_scale": {"bias": 2.0}}, {"epoch": 3, "colour_noise": 0.0}]
    started(tmp_path / "run", photos, **{"augment.colour_noise": 0.1, "schedule.table": table, "train.epochs": 4})
    assert drawn == {1: {0.1}, 2: {0.1}, 3: {0.0}, 4: {0.0}}


# Stop and resume


RESUMED: dict[str, dict[str, Any]] = {
    "mean image, plateau, noise table, frozen": {
        **{"images.cache_size": 40, "images.crop": 36, "images.mean": "image", "augment.crop": True, "augment.together": 3},
        **{"schedule.kind": "plateau", "schedule.patience": 1, "schedule.threshold": 5.0, "optimizer.form": "2012"},
        **{"schedule.table": [{"epoch": 2, "colour_noise": 0.2, "lr_scale": {"bias": 2.0}}], "augment.colour_noise": 0.1},
        **{"optimizer.frozen": "pool1", "train.save_epochs": "cp-{epoch}", "train.last_batch": "short", "train.epochs": 4},
    },
    "full images, early stop, Keras": {
        **{"images.cache_size": "full", "images.fit": "stretch", "images.mean": "one", "augment.rotation": 10.0},
        **{"optimizer.form": "keras", "optimizer.momentum": 0.0, "train.last_batch": "drop", "train.loss": "binary"},
        **{"stop.metric": "val_error", "stop.patience": 2, "schedule.kind": "constant", "train.epochs": 12},
        **{"schedule.table": [{"epoch": 2, "lr": 0.03, "colour_noise": 0.1}], "train.keep": "last"},
    },
    "no momentum": {"optimizer.momentum": 0.0, "schedule.kind": "step", "schedule.every": 1, "train.epochs": 2},
}


@mostly_long("steps", [2, 6], 6)
@mostly_long("name", RESUMED, "mean image, plateau, noise table, frozen")
def test_resume_of_lr_schedules_is_bit_identical(
    name: str, steps: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = started(tmp_path / "whole", photos, **RESUMED[name])
    stop_after(monkeypatch, "train_step", steps)
    with pytest.raises(AlexNetError, match="resume with"):
        started(tmp_path / "stopped", photos, **RESUMED[name])
    training.resume(tmp_path / "stopped", "cpu", time.monotonic())
    assert metrics(tmp_path / "stopped") == rows
    if "stop.patience" in RESUMED[name]:
        assert len(rows) < RESUMED[name]["train.epochs"], "it ended early"
    if "schedule.patience" in RESUMED[name]:
        assert len(set(lrs(rows))) > 1, "the plateau lowered the rate"
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors")]
    assert len(files) == 1 + (4 if "train.save_epochs" in RESUMED[name] else 0)
    for file in files:
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    recipes = [RunFolder(tmp_path / run).recipe.read_text() for run in ("whole", "stopped")]
    assert recipes[0] == recipes[1]
