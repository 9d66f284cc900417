"""Averaged weights (`train.average`): their definition, what is validated and kept, resuming, several processes."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from proof.torture import sets

import alexnet
from alexnet import cli, recipe
from alexnet.errors import AlexNetError
from alexnet.network.device import to_device
from alexnet.training import train as training
from alexnet.training.average import WeightAverage, share_of_newest
from alexnet.training.distributed import process_group
from alexnet.training.parallel import Parallel, ParallelModel
from alexnet.training.trainer import Trainer
from commands import together
from conftest import SHORT, metrics, stop_after, tell_time_by_steps, weights

HORIZON = 0.25
AVERAGED = {**SHORT, "train.average": HORIZON, "train.save_epochs": "{epoch}", "train.precision": "float32"}
TOTAL = 12  # steps: four batches of 28 images, three epochs
TENSORS = ("features.conv1.weight", "features.norm1.running_var", "head.bias")


def train(photos: Path, out: Path, started: float | None = None, **changes: Any) -> Path:
    """Train by `AVERAGED` and `changes`, without a report."""
    made = recipe.load("fast").with_settings({"data.dataset": str(photos), **AVERAGED, **changes})
    training.start(made, out, "cpu", time.monotonic() if started is None else started, test=False)
    return out


def resume(out: Path, started: float | None = None) -> None:
    training.resume(out, "cpu", time.monotonic() if started is None else started, test=False)


def exponential(values: list[NDArray[np.float64]], pace: float) -> NDArray[np.float64]:
    """Return the average of values, in which one counts exp(-pace / HORIZON) as much as the next."""
    counts = np.exp(-np.arange(len(values))[::-1] * pace / HORIZON)
    return np.einsum("n,n...->...", counts / counts.sum(), np.stack(values))


@pytest.fixture(scope="module")
def recorded(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, NDArray[np.float64]]]]:
    """A run of `AVERAGED` that was not interrupted, and some of its raw tensors after each step; read-only."""
    steps, taken = [], Trainer.train_step

    def recording(self: Trainer, *args: Any) -> None:
        taken(self, *args)
        state = self.step.model.full_model.state_dict()
        steps.append({name: state[name].double().numpy() for name in TENSORS})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", recording)
        run = train(photos, tmp_path_factory.mktemp("averaged") / "run")
    return run, steps


# What it is


@pytest.mark.parametrize("epoch", [1, 3])
def test_average_equals_a_float64_reference(recorded: tuple[Path, Any], epoch: int) -> None:
    run, steps = recorded
    assert len(steps) == TOTAL
    saved = safetensors.torch.load_file(run / "epochs" / f"{epoch}.safetensors")
    for name in TENSORS:
        values = [step[name] for step in steps[: 4 * epoch]]
        np.testing.assert_allclose(saved[name].numpy(), exponential(values, 1 / TOTAL), rtol=1e-5, atol=1e-6)
        assert np.abs(saved[name].numpy() - values[-1]).max() > 1e-5


@given(st.floats(1e-6, 0.99), st.floats(1e-6, 0.2), st.integers(1, 40))
def test_share_of_newest(horizon: float, pace: float, steps: int) -> None:
    ages = np.arange(steps + 1)
    expected = 1 / np.exp(-pace * ages / horizon).sum()
    assert share_of_newest(horizon, pace * steps, steps) == pytest.approx(expected, rel=1e-9)


def test_first_weights_replace_the_initial_ones_and_a_standing_clock_gives_the_mean() -> None:
    assert share_of_newest(HORIZON, 0.0, 0) == 1.0
    assert share_of_newest(HORIZON, 0.0, 3) == 0.25


def test_batches_and_training_metrics_are_those_without_it(recorded: tuple[Path, Any], photos: Path, tmp_path: Path) -> None:
    """The averaged network is only looked at: the training goes on from the raw weights."""
    plain = train(photos, tmp_path / "run", **{"train.average": 0.0})
    for ours, theirs in zip(metrics(recorded[0]), metrics(plain), strict=True):
        assert all(ours[key] == theirs[key] for key in ("lr", "train_loss", "train_top1"))
        assert ours["val_loss"] != theirs["val_loss"]


# What is validated and kept


def test_validation_is_of_the_averaged_network(recorded: tuple[Path, Any]) -> None:
    run, _ = recorded
    for row in metrics(run):
        result = alexnet.load(run / "epochs" / f"{row['epoch']}.safetensors").evaluate(split="val")
        assert result.loss == pytest.approx(float(row["val_loss"]), rel=1e-5)
    summary = alexnet.load(run).summary
    best = safetensors.torch.load_file(run / "epochs" / f"{summary['best_epoch']}.safetensors")
    kept = safetensors.torch.load_file(run / "model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in best.items())


# Stopping and resuming


FROZEN = {"optimizer.frozen": "pool2", "augment.shift": 0.0, "schedule.progressive_resize": [], "train.keep": "last"}


@pytest.mark.parametrize("changes", [{}, FROZEN])
def test_resume_with_an_average_is_bit_identical(
    changes: dict[str, Any], recorded: tuple[Path, Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second epoch, with the best weights in place, and in the last validation; also with frozen layers."""
    whole, run = recorded[0], tmp_path / "run"
    if changes:
        whole = train(photos, tmp_path / "whole", **changes)
        assert "frozen layers up to pool2 are computed once" in (whole / "log.txt").read_text(encoding="utf-8")
    with monkeypatch.context() as patch:
        stop_after(patch, "train_step", 6)
        with pytest.raises(AlexNetError, match="resume with"):
            train(photos, run, **changes)
    if not changes:
        best = safetensors.torch.load_file(run / "epochs" / "1.safetensors")
        assert safetensors.torch.load_file(run / "model.safetensors")["head.weight"].equal(best["head.weight"])
    with monkeypatch.context() as patch:
        stop_after(patch, "evaluate", 2)  # in the validation of the last epoch
        with pytest.raises(AlexNetError, match="resume with"):
            resume(run)
    resume(run)
    assert metrics(run) == metrics(whole)
    assert weights(run) == weights(whole)
    for epoch in (1, 2, 3):
        ours, theirs = (folder / "epochs" / f"{epoch}.safetensors" for folder in (run, whole))
        assert ours.read_bytes() == theirs.read_bytes()
    first, last = (safetensors.torch.load_file(run / "epochs" / f"{epoch}.safetensors") for epoch in (1, 3))
    frozen = {name for name in first if torch.equal(first[name], last[name])}
    below = {name for name in first if name.split(".")[1] in ("conv1", "norm1", "conv2", "norm2")}
    assert frozen == (below if changes else set())


def test_resume_with_an_average_by_the_clock(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress is that of the journal: once stopped, and once from the journal alone, with another clock."""
    run, again = tmp_path / "run", tmp_path / "again"
    tell_time_by_steps(monkeypatch, 0.5)
    with monkeypatch.context() as patch:
        stop_after(patch, "train_step", 6)
        with pytest.raises(AlexNetError, match="resume with"):
            train(photos, run, 0.0, **{"train.minutes": 0.15})
    resume(run, 3.0)
    again.mkdir()
    for name in ("recipe.toml", "journal.txt"):
        shutil.copy(run / name, again / name)
    tell_time_by_steps(monkeypatch, 100.0)
    resume(again, 0.0)
    assert metrics(again) == metrics(run)
    assert weights(again) == weights(run)


# Several processes


CASES: list[tuple[Parallel, str]] = [("data", "cifar10"), ("towers", "paper"), ("hybrid", "cifar10")]


def average_in_steps(out: str) -> None:
    """Average weights that change in known ways, from the start and from a state after two steps; write both averages."""
    result = {}
    with process_group() as group:
        for kind, variant in CASES:
            torch.manual_seed(0)
            network = to_device(alexnet.AlexNet(variant, 5, width=1 / 16, norm="batch"), torch.device("cpu"))
            model = ParallelModel(network, group, kind if group.world_size > 1 else "data", synchronised=False)
            averages = [
                WeightAverage(model, alexnet.AlexNet(variant, 5, width=1 / 16, norm="batch"), HORIZON) for _ in range(2)
            ]
            for step in range(4):
                for name, tensor in model.network.state_dict().items():
                    own = group.rank if kind == "data" and name.endswith("running_mean") else 0  # without synchronised norms
                    tensor.add_(1 + step + own) if tensor.dtype == torch.int64 else tensor.mul_(0.9).add_(0.1 * step + own)
                if step == 2:
                    averages[0].gather()
                    averages[1].restore({name: tensor.clone() for name, tensor in averages[0].network.state_dict().items()})
                for average in averages[: 1 if step < 2 else 2]:
                    average.update(step / TOTAL, step)
            for place, average in enumerate(averages):
                average.gather()
                state = {name: tensor.contiguous() for name, tensor in average.network.state_dict().items()}
                result |= {f"{kind} {variant} {place} {name}": tensor for name, tensor in state.items()}
        safetensors.torch.save_file(result, f"{out}-{group.rank}")


@pytest.mark.long
def test_processes_average_as_one_does(tmp_path: Path) -> None:
    average_in_steps(str(tmp_path / "one"))
    together(2, tmp_path / "said", tmp_path / "two", main=average_in_steps)
    one, *two = (safetensors.torch.load_file(tmp_path / name) for name in ("one-0", "two-0", "two-1"))
    for ours in two:
        assert ours.keys() == one.keys()
        for name, tensor in one.items():
            assert torch.equal(ours[name], tensor), name
            assert torch.equal(tensor, one[name.replace(" 1 ", " 0 ")]), f"{name} goes on from the state"


def train_until_step(steps: str, *_: str) -> None:
    """Run `alexnet` with the other arguments; the last process receives SIGINT after that step."""
    count, step = 0, Trainer.train_step

    def stopping(self: Trainer, *args: Any) -> None:
        nonlocal count
        step(self, *args)
        count += 1
        if count == int(steps) and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGINT)

    Trainer.train_step = stopping  # type: ignore[method-assign]
    del sys.argv[1]
    cli.main()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["data", "towers", "hybrid"])
def test_processes_resume_with_an_average_bit_identically(kind: str, photos: Path, tmp_path: Path) -> None:
    changes = {"model.variant": "paper", "model.norm": "batch", "optimizer.muon_lr": 0.0, "optimizer.lr_scale": {}}
    command = ["train", photos, *sets({**AVERAGED, **changes, "model.whitening_init": False}), "--parallel", kind]
    together(2, tmp_path / "1", *command, "--out", tmp_path / "whole")
    together(2, tmp_path / "2", 6, *command, "--out", tmp_path / "run", main=train_until_step, code=130)
    together(2, tmp_path / "3", "train", "--resume", tmp_path / "run", "--parallel", kind)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
