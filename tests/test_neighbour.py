"""The networks that `benchmarks.neighbour` compares with are those of their publications."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks.small_networks import resnet18, speed_record, whiten
from benchmarks.small_recipes import ResNet18, SpeedRecord
from torch import nn


def count(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def test_resnet18_has_the_published_parameters_and_sizes() -> None:
    assert count(resnet18(1000)) == 11_689_512  # torchvision.models.resnet18
    network = resnet18(10)
    assert count(network) == 11_181_642
    assert network[:12](torch.zeros(1, 3, 64, 64)).shape == (1, 512, 2, 2)  # a 32nd of the side
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_the_speed_record_has_the_published_parameters_and_sizes() -> None:
    network = speed_record(10)
    scales = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    assert count(network) - scales == 1_971_640  # 1.97 million (Jordan 2024)
    assert network[:5](torch.zeros(1, 3, 32, 32)).shape == (1, 256, 3, 3)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_whitened_patches_are_uncorrelated() -> None:
    images = torch.rand(50, 3, 8, 8).cumsum(2) / 8  # neighbouring pixels are alike
    layer = nn.Conv2d(3, 24, 2)
    whiten(layer, images)
    outputs = layer(images).transpose(0, 1).flatten(1).double()  # 24 x positions
    products = outputs[:12] @ outputs[:12].T / outputs.shape[1]
    assert torch.allclose(products - torch.diag(products.diagonal()), torch.zeros(12, 12).double(), atol=1e-4)
    assert (products.diagonal() <= 1).all()
    assert products[0, 0] > 0.99  # the largest variance is far above the constant that is added
    assert torch.allclose(outputs[12:], -outputs[:12])


def test_slow_weights_follow_the_fast_ones() -> None:
    way = SpeedRecord(10, torch.rand(4, 3, 32, 32), 1024)
    bias = way.network.block1.norm1.bias

    def five_steps(progress: float, value: float) -> float:
        bias.data.fill_(value)
        for _ in range(5):
            way.after_step(progress)
        return bias[0].item()

    assert five_steps(0.1, 1.0) == 1.0  # too early
    assert five_steps(0.4, 2.0) == 2.0  # slow weights start here
    kept = 0.95**5 * 0.5**3
    assert five_steps(0.5, 3.0) == pytest.approx(kept * 2 + (1 - kept) * 3)
    bias.data.fill_(100.0)
    way.end_epoch()
    assert bias[0].item() == pytest.approx(kept * 2 + (1 - kept) * 3)


def test_learning_rates_follow_the_clock() -> None:
    way = SpeedRecord(10, torch.rand(4, 3, 32, 32), 1024)
    peak = 11.5 / (1 + 1 / 0.15)
    for progress, factor in ((0.0, 0.2), (0.23, 1.0), (1.0, 0.07)):
        way.before_step(progress)
        biases, others = way.optimizer.param_groups
        assert others["lr"] == pytest.approx(peak * factor)
        assert biases["lr"] == pytest.approx(64 * peak * factor)
        assert biases["lr"] * biases["weight_decay"] == pytest.approx(others["lr"] * others["weight_decay"])
        assert way.network.whiten.bias.requires_grad == (progress < 0.3)
    slow = ResNet18(10, torch.empty(0), 64)
    slow.before_step(2 / 16)
    assert slow.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 / 16)


@pytest.mark.parametrize("kind", [SpeedRecord, ResNet18])
def test_views_are_weighted_means(kind: type[SpeedRecord] | type[ResNet18]) -> None:
    x = torch.rand(2, 3, 32, 32)
    views = list(kind(10, x, 64).views(x))
    assert math.fsum(weight for weight, _ in views) == 1
    assert torch.equal(views[0][1], x)
    assert torch.equal(views[1][1], x.flip(3))
    assert all(view.shape == x.shape for _, view in views)
