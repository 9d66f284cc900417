"""Training in float16, with loss scaling: its steps are those of PyTorch's `GradScaler`."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import alexnet
from alexnet.errors import AlexNetError, DivergedError
from alexnet.network import device
from alexnet.network.device import resolve_precision
from alexnet.recipe import Optimizer, load
from alexnet.training import loss_scale, step
from alexnet.training.loss_scale import LossScale
from alexnet.training.optimizer import build_optimizer
from alexnet.training.trainer import Trainer
from commands import together
from conftest import NARROW, metrics, mostly_long, started, stop_after, weights
from test_waiting import META, step_on, take_two_steps

HALF = {"train.precision": "float16", "train.epochs": 3}
OVERFLOWS = (0, 1, 5, 6)  # of ten steps
FORMS: dict[str, dict[str, Any]] = {
    "keras": {"form": "keras", "nesterov": True},
    "2012": {"form": "2012"},
    "pytorch": {"form": "pytorch"},
    "without momentum": {"momentum": 0.0},
    "muon": {"muon_lr": 0.1, "nesterov": True},
    "fused": {},
}


class Stepped:
    """A network and its optimizer, with the same ten gradients of a loss as others have."""

    def __init__(self, form: str) -> None:
        torch.manual_seed(0)
        self.network = alexnet.AlexNet("cifar10", 3, width=1 / 16)
        settings = Optimizer.model_validate({"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3, **FORMS[form]})
        self.optimizer = build_optimizer(self.network, settings)
        if form == "fused":
            self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9, fused=True)

    def set_gradients(self, number: int, scale: float) -> None:
        rng = torch.Generator().manual_seed(number)
        for parameter in self.network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=rng).mul(0.01 * scale)
        if number in OVERFLOWS:
            gradient = self.network.head.bias.grad
            assert gradient is not None
            gradient[1] = math.inf if number % 2 else math.nan

    def tensors(self) -> list[torch.Tensor]:
        buffers = (each.get("momentum_buffer") for each in self.optimizer.state.values())
        return [p.detach().clone() for p in self.network.parameters()] + [b.clone() for b in buffers if b is not None]


@pytest.mark.parametrize("form", FORMS)
def test_steps_are_those_of_grad_scaler(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, momentum and scale, to the bit; it reads from the device whether to step at all."""
    monkeypatch.setattr(loss_scale, "STEADY", 3)
    ours, theirs = Stepped(form), Stepped(form)
    scale, scaler = LossScale(torch.device("cpu"), 1), torch.amp.GradScaler("cpu", loss_scale.FIRST, growth_interval=3)
    theirs.optimizer._step_supports_amp_scaling = False  # else a fused first step that is skipped leaves momentum undefined
    scaler.scale(torch.zeros(()))  # it makes its scale here
    found = []
    for number in range(10):
        before = ours.tensors()
        ours.set_gradients(number, float(scale.scaled(torch.ones(()))))
        scale.step(ours.optimizer)
        theirs.set_gradients(number, scaler.get_scale())
        scaler.step(theirs.optimizer)
        scaler.update()
        if number in OVERFLOWS and number:
            assert all(torch.equal(now, was) for now, was in zip(ours.tensors(), before, strict=False))
        expected = theirs.tensors()
        assert all(torch.equal(now, other) for now, other in zip(ours.tensors(), expected, strict=False))
        assert len(expected) == len(ours.tensors()) or number in OVERFLOWS, "momentum, which ours has from the start"
        found.append(float(scale.state["scale"]))
        assert found[-1] == scaler.get_scale()
    assert found[:2] == [loss_scale.FIRST / 2, loss_scale.FIRST / 4]
    assert max(found[4:]) > found[1], "it grows, too"


def losses(out: Path) -> list[float]:
    """Return the training loss of each epoch."""
    return [float(row["train_loss"]) for row in metrics(out)]


@pytest.mark.long
def test_losses_in_float16_are_near_those_in_float32(photos: Path, tmp_path: Path) -> None:
    size = {"images.cache_size": 80, "images.crop": 67}
    changes = {**size, "model.norm": "batch", "model.dropout": 0.0, "train.epochs": 3, "optimizer.lr": 0.01}
    started(tmp_path / "half", photos, "paper", **{**changes, "train.precision": "float16"})
    started(tmp_path / "single", photos, "paper", **changes)
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "single"), rel=0.005)
    assert weights(tmp_path / "half") != weights(tmp_path / "single")
    environment = json.loads((tmp_path / "half" / "environment.json").read_text())
    assert environment["precision"] == "float16"


def overflow_in(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make gradients overflow in these of all the steps of a training."""
    original = step.Step.update

    def overflowing(self: step.Step) -> None:
        count = len(self.bounds) * (progress["epoch"] - 1) + progress["batch"]
        if count in steps:
            self.model.network.head.bias.grad.fill_(math.inf)  # type: ignore[union-attr]
        original(self)

    progress: dict[str, int] = {}
    taken = Trainer.train_step

    def noted(self: Trainer, *args: Any) -> None:
        progress.update(epoch=self.state.epoch, batch=self.state.batch)
        taken(self, *args)

    monkeypatch.setattr(step.Step, "update", overflowing)
    monkeypatch.setattr(Trainer, "train_step", noted)


@mostly_long("steps", [1, 4, 8], 4)
def test_resume_in_float16_is_bit_identical(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Steps overflow and the scale grows, before the checkpoint and after it."""
    monkeypatch.setattr(loss_scale, "STEADY", 4)
    overflow_in(monkeypatch, 0, 2, 6, 8)
    started(tmp_path / "whole", photos, **HALF)
    with monkeypatch.context() as patch:
        stop_after(patch, "train_step", steps)
        with pytest.raises(AlexNetError, match="resume with"):
            started(tmp_path / "run", photos, **HALF)
    saved = safetensors.torch.load_file(tmp_path / "run" / "checkpoint" / "last" / "state.safetensors")
    expected = {1: (2.0**11, 0), 4: (2.0**10, 1), 8: (2.0**9, 1)}[steps]
    assert (float(saved["loss_scale/scale"]), int(saved["loss_scale/steady"])) == expected
    alexnet.resume(tmp_path / "run", device="cpu")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_gradients_that_never_are_finite_end_the_training(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflow_in(monkeypatch, *range(100))
    with pytest.raises(DivergedError, match=r"not finite in float16.*; try --set train.precision=float32"):
        started(tmp_path / "run", photos, **{**HALF, "train.epochs": 20})


def test_no_step_in_float16_reads_from_the_device(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "autocast", lambda *_: nullcontext())  # the device without values has none
    taken = step_on(META, load("fast").with_settings({**NARROW, "train.precision": "float16"}), photos)
    take_two_steps(taken)
    assert taken.loss_scale is not None
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        taken.loss_scale.is_lost()


def test_precision_of_devices_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda _: False)
    found = {kind: resolve_precision(torch.device(kind), "auto") for kind in ("cuda", "cpu", "mps")}
    assert found == {"cuda": "float16", "cpu": "float32", "mps": "float32"}
    assert resolve_precision(torch.device("cpu"), "float16") == "float16"


def step_with_an_overflow(out: str) -> None:
    """Take a step in which the gradients of the second process overflow, and one in which none do; write the weights."""
    from alexnet.training.distributed import process_group

    with process_group() as group:
        weight = torch.ones(3, requires_grad=True)
        scale, optimizer = LossScale(torch.device("cpu"), group.world_size), torch.optim.SGD([weight], 0.5)
        result = {}
        for number in range(2):
            weight.grad = torch.full((3,), math.inf if number == 0 and group.rank == 1 else float(scale.state["scale"]))
            scale.step(optimizer)
            result |= {f"weight {number}": weight.detach().clone(), f"scale {number}": scale.state["scale"].clone()}
        safetensors.torch.save_file(result, f"{out}-{group.rank}")


@pytest.mark.long
def test_processes_skip_a_step_together(tmp_path: Path) -> None:
    together(2, tmp_path / "said", tmp_path / "out", main=step_with_an_overflow)
    for rank in range(2):
        found = safetensors.torch.load_file(tmp_path / f"out-{rank}")
        assert found["weight 0"].tolist() == [1, 1, 1]
        assert found["weight 1"].tolist() == [0.5, 0.5, 0.5]
        assert [float(found[f"scale {number}"]) for number in range(2)] == [2.0**11, 2.0**11]
