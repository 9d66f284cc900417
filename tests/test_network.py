"""Network: every variant compared with published counts, PyTorch's own layers and NumPy in float64."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from alexnet import AlexNet
from alexnet.errors import VariantError
from alexnet.network.alexnet import initialize
from alexnet.network.layers import FlattenMaps
from alexnet.network.lrn import LocalResponseNorm
from alexnet.network.summary import summarize
from alexnet.network.variants import ROWS, VARIANTS, Dense, Norm
from conftest import mostly_long

NAMES = sorted(VARIANTS)


def narrow(name: str, **overrides: object) -> AlexNet:
    torch.manual_seed(0)
    return AlexNet(name, 5, width=1 / 16, **overrides)


@pytest.mark.parametrize("name", NAMES)
def test_initialize_sets_every_parameter_and_buffer(name: str) -> None:
    network = narrow(name)
    expected = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        for value in network.state_dict().values():
            value.fill_(float("nan") if value.is_floating_point() else 7)
    torch.manual_seed(0)
    initialize(network)
    for key, value in network.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    network = narrow(name)
    # The paper's initial weights are small: in a narrow network, gradients underflow in float32 although they are not zero.
    loss = network.double()(torch.randn(2, 3, 96, 96, dtype=torch.float64)).square().sum()
    loss.backward()
    assert torch.isfinite(loss)
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_smallest_input(name: str) -> None:
    network = narrow(name).eval()
    size = network.smallest
    assert network(torch.zeros(1, 3, size, size)).shape == (1, 5)
    with pytest.raises(VariantError, match=f"at least {size}x{size}"):
        network(torch.zeros(1, 3, size, size - 1))


def test_towers_are_independent_where_the_paper_says() -> None:
    network = narrow("paper").double()
    images = torch.randn(1, 3, 227, 227, dtype=torch.float64)
    _, maps = network.activations(images, ["relu1", "pool2", "relu3", "relu5"])
    for reader, source, apart in [("pool2", "relu1", True), ("relu5", "relu3", True), ("relu3", "pool2", False)]:
        first_tower = maps[reader][:, : maps[reader].shape[1] // 2].sum()
        (gradient,) = torch.autograd.grad(first_tower, maps[source], retain_graph=True)
        other = gradient[:, gradient.shape[1] // 2 :].abs().sum()
        assert bool(other == 0) is apart, (reader, source)


def test_activations_by_layer_name() -> None:
    network = narrow("cifar10").eval()
    images = torch.randn(2, 3, 96, 96)
    logits, kept = network.activations(images, ["conv5", "fc7", "fc8"])
    assert set(kept) == {"conv5", "fc7", "fc8"}
    assert torch.equal(kept["fc8"], logits)
    assert torch.equal(logits, network(images))
    assert bool((kept["conv5"] < 0).any()), "the ReLU after it must not have changed it"
    with pytest.raises(VariantError, match="no layer 'conv9'"):
        network.activations(images, ["conv9"])


@pytest.mark.parametrize(("order", "axes"), [("HWC", (0, 2, 3, 1)), ("CHW", (0, 1, 2, 3))])
def test_flatten_order(order: str, axes: tuple[int, ...]) -> None:
    maps = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).float()
    assert np.array_equal(FlattenMaps(4, order)(maps).numpy(), maps.numpy().transpose(axes).reshape(2, -1))


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 8))
@settings(max_examples=60)
def test_flatten_pools_maps_adaptively(height: int, width: int, grid: int) -> None:
    maps = torch.randn(2, 3, height, width, dtype=torch.float64)
    expected = nn.functional.adaptive_avg_pool2d(maps, grid).flatten(1)
    torch.testing.assert_close(FlattenMaps(grid, "CHW")(maps), expected)


@pytest.mark.parametrize(
    ("overrides", "present", "absent"),
    [
        ({"activation": "tanh"}, nn.Tanh, nn.ReLU),
        ({"norm": "local"}, LocalResponseNorm, nn.BatchNorm2d),
        ({"norm": "none"}, nn.ReLU, nn.BatchNorm2d),
    ],
)
def test_variant_overrides(overrides: dict[str, str], present: type, absent: type) -> None:
    kinds = {type(layer) for layer in narrow("cifar10", **overrides).modules()}
    assert present in kinds
    assert absent not in kinds


@mostly_long("name", [row.name for row in ROWS if any(isinstance(layer, Norm) for layer in row.layers)], "paper", "cats-dogs")
def test_local_response_norm_follows_the_first_two_convolutions_alone(name: str) -> None:
    """Paper, section 3.3, and tutorial 000; `cats-dogs` has a norm after its second convolution only."""
    plain, network = summarize(AlexNet(name, norm="none").row), summarize(AlexNet(name, norm="local").row)
    norms = [layer.name for layer in network.layers if layer.kind == "local response normalisation"]
    assert norms == (["norm2"] if name == "cats-dogs" else ["norm1", "norm2"])
    assert [layer for layer in network.layers if layer.name not in norms] == list(plain.layers)
    assert network.parameters == plain.parameters


def test_local_response_norm_after_each_convolution() -> None:
    """`local-each` is what `local` meant in earlier versions."""
    layers = AlexNet("cifar10", norm="local-each", width=1 / 16).layers
    assert [name for name, layer in layers.items() if isinstance(layer, LocalResponseNorm)] == [f"norm{n}" for n in range(1, 6)]


def test_variant_override_of_pool() -> None:
    pool = narrow("cifar10", pool=[2, 2]).features.pool1
    assert isinstance(pool, nn.MaxPool2d)
    assert (pool.kernel_size, pool.stride) == (2, 2)


@pytest.mark.parametrize("name", [row.name for row in ROWS if any(isinstance(layer, Dense) for layer in row.layers)])
def test_variant_override_of_dense_units(name: str) -> None:
    plain = {layer.name: layer.output for layer in summarize(name).layers}
    network = {layer.name: layer.output for layer in summarize(AlexNet(name, dense_units=100).row).layers}
    small = {f"{kind}{number}" for kind in ("fc", "relu", "dropout") for number in (6, 7)} & {*plain}
    assert network == {layer: (100,) if layer in small else output for layer, output in plain.items()}


def test_batch_norm_constants() -> None:
    def norm(**overrides: object) -> nn.BatchNorm2d:
        layer = narrow("cifar10", **overrides).features.norm1
        assert isinstance(layer, nn.BatchNorm2d)
        return layer

    assert (norm().eps, norm().momentum) == (1e-3, 0.01)
    assert norm(batch_norm_momentum=0.1).momentum == 0.1


def test_width_keeps_towers_even() -> None:
    for row in ROWS:
        for width in (1 / 64, 1 / 16, 0.3, 2):
            with torch.device("meta"):
                network = AlexNet(row, 10, width=width)
            assert all(layer.out_channels % row.towers == 0 for layer in network.modules() if isinstance(layer, nn.Conv2d))
    with torch.device("meta"):
        assert sum(p.numel() for p in AlexNet("cifar10", width=1 / 16).parameters()) < 500_000


def test_unknown_variant_names_the_nearest() -> None:
    with pytest.raises(VariantError, match="did you mean 'paper'"):
        AlexNet("papper")


WRONG_FIELDS: dict[str, dict[str, Any]] = {
    "norm is 'lrn', but should be 'batch', 'local', 'local-each' or 'none'": {"norm": "lrn"},
    "norm is None": {"norm": None},
    "activation is 'gelu', but should be 'relu' or 'tanh'": {"activation": "gelu"},
    "did you mean 'towers'": {"towrs": 1},
    "pool is 2, but should be two whole numbers": {"pool": 2},
    "pool is (3,)": {"pool": (3,)},
    "dropout is 1.5": {"dropout": 1.5},
    "towers is 0": {"towers": 0},
    "classes is 0": {"classes": 0},
    "width is -1": {"width": -1},
}


@pytest.mark.parametrize("message", WRONG_FIELDS)
def test_invalid_variant_field_is_named(message: str) -> None:
    with pytest.raises(VariantError, match=re.escape(message)):
        AlexNet("paper", **WRONG_FIELDS[message])


def test_custom_variant_takes_overrides() -> None:
    network = AlexNet(replace(VARIANTS["paper"], name="mine"), 4, width=1 / 16, towers=1, norm="none")
    assert network.row == replace(AlexNet("paper", width=1 / 16, towers=1, norm="none").row, name="mine")
    assert network.row.towers == 1
    assert network(torch.zeros(1, 3, 96, 96)).shape == (1, 4)
