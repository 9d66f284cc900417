"""The kernels in C++: what they compute is what the layers say, and without them everything works the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet import AlexNet
from alexnet.network import fused
from alexnet.network.lrn import LocalResponseNorm
from alexnet.recipe import Optimizer
from alexnet.training.optimizer import build_optimizer, set_rate

needs_kernels = pytest.mark.skipif(fused.kernels() is None, reason="no kernels here: no compiler, or another system than Linux")
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-8}  # relative to the largest value: a few roundings


@needs_kernels
@pytest.mark.parametrize("kind", TOLERANCES, ids=str)
def test_response_norm_equals_float64_on_a_thousand_random_shapes(kind: torch.dtype) -> None:
    generator = np.random.default_rng(0)
    for _ in range(500):
        count, towers, per_tower, height, width, size = generator.integers(1, [4, 4, 40, 7, 7, 8])
        alpha, beta, k = (
            generator.choice([1e-4, 2e-5, 0.3]),
            generator.choice([0.75, 0.5, 1.0, 0.6]),
            generator.choice([1.0, 2.0]),
        )
        norm = LocalResponseNorm(int(size), float(alpha), float(beta), float(k), int(towers))
        shape = (count, towers * per_tower, height, width)
        images = torch.from_numpy(generator.standard_normal(shape) * 10).to(kind)
        gradient = torch.from_numpy(generator.standard_normal(shape)).to(kind)
        if generator.random() < 0.5:
            images = images.contiguous(memory_format=torch.channels_last)
        exact, narrow = images.double().requires_grad_(), images.requires_grad_()
        expected, found = norm(exact), norm(narrow)
        assert found.dtype == kind
        (wanted,) = torch.autograd.grad(expected, exact, gradient.double())
        (got,) = torch.autograd.grad(found, narrow, gradient)
        for a, b in ((found, expected), (got, wanted)):
            scale = float(b.detach().abs().max())
            assert float((a.detach().double() - b.detach()).abs().max()) <= TOLERANCES[kind] * scale, (shape, size, beta)


@needs_kernels
def test_response_norm_keeps_what_is_not_a_number_and_takes_no_images_at_all() -> None:
    norm = LocalResponseNorm(5, 1e-4, 0.75, 2.0)
    images = torch.ones(1, 8, 1, 1, dtype=torch.bfloat16)
    images[0, 3] = float("nan")
    found = norm(images).flatten()
    assert torch.isnan(found[1:6]).all(), "all whose window it is in"
    assert torch.isfinite(found[[0, 6, 7]]).all()
    assert norm(torch.empty(0, 8, 3, 3)).shape == (0, 8, 3, 3)


@needs_kernels
@pytest.mark.parametrize("name", ["paper", "code2012", "caffenet", "table", "scratch"])
def test_a_network_is_the_same_with_and_without_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = AlexNet(name, 5, width=1 / 8).eval()
    images = torch.randn(2, 3, 99, 99).contiguous(memory_format=torch.channels_last)

    def gradients() -> list[torch.Tensor]:
        logits = network(images)
        return [logits.detach(), *torch.autograd.grad(logits.square().sum(), list(network.parameters()))]

    with_kernels = gradients()
    monkeypatch.setattr(fused, "kernels", lambda: None)
    for a, b in zip(with_kernels, gradients(), strict=True):
        assert float((a - b).norm()) <= 1e-4 * float(b.norm()) + 1e-12


def test_they_are_switched_off_by_one_setting_and_missed_by_nobody(tmp_path: Path) -> None:
    code = "from alexnet.network import fused; print(fused.kernels())"
    for changes in ({"ALEXNET_KERNELS": "0"}, {"PATH": str(tmp_path)}, {"ALEXNET_CACHE": str(tmp_path / "file")}):
        (tmp_path / "file").touch()
        environment = {**os.environ, **changes}
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert found.stdout.strip() == "None", changes


@needs_kernels
@pytest.mark.parametrize("form", ["2012", "keras"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_the_same_with_and_without_kernels(
    form: str, momentum: float, nesterov: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Optimizer(form=form, rate=0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.01, decays="all")

    def trained() -> list[torch.Tensor]:
        torch.manual_seed(0)
        network = AlexNet("cifar10", 3, width=1 / 16).to(memory_format=torch.channels_last)
        optimizer = build_optimizer(network, settings)
        for step in range(4):
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape)
                if step % 2 and parameter.ndim == 4:  # gradients come in either order of axes
                    parameter.grad = parameter.grad.contiguous(memory_format=torch.channels_last)
            set_rate(optimizer, 0.1 / (step + 1))
            optimizer.step()
        return [parameter.detach() for parameter in network.parameters()]

    with_kernels = trained()
    monkeypatch.setattr(fused, "kernels", lambda: None)
    for a, b in zip(with_kernels, trained(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
