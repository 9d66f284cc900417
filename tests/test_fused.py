"""C++ kernels and fused layers equal the plain layers, and everything works without them."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from alexnet import AlexNet
from alexnet.network.device import autocast, to_device
from alexnet.network.fast import fuse, kernels
from alexnet.network.layers import BatchNorm, FlattenMaps
from alexnet.network.lrn import LocalResponseNorm
from alexnet.network.variants import VARIANTS
from alexnet.recipe import Optimizer
from alexnet.training.optimizer import build_optimizer, set_lr

needs_kernels = pytest.mark.usefixtures("kernels_here")
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-8}  # relative to the largest value: a few rounding errors


@pytest.fixture(scope="module")
def kernels_here() -> None:
    """Skip without kernels; checked when a test runs, as the cache folder is not set earlier."""
    if kernels.library() is None:
        pytest.skip("no kernels here: no compiler, another system than Linux, or switched off")


@pytest.fixture(scope="module")
def winograd_here() -> None:
    if not fuse.supports_winograd():
        pytest.skip("needs AVX-512 bfloat16 and no AMX")


@needs_kernels
@pytest.mark.parametrize("kind", TOLERANCES, ids=str)
def test_response_norm_kernel_equals_float64(kind: torch.dtype) -> None:
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
        relu = bool(generator.random() < 0.5)
        expected, result = norm(exact, relu=relu), norm(narrow, relu=relu)
        assert result.dtype == kind
        (expected_gradient,) = torch.autograd.grad(expected, exact, gradient.double())
        (result_gradient,) = torch.autograd.grad(result, narrow, gradient)
        for a, b in ((result, expected), (result_gradient, expected_gradient)):
            scale = float(b.detach().abs().max())
            assert float((a.detach().double() - b.detach()).abs().max()) <= TOLERANCES[kind] * scale, (shape, size, beta)


@needs_kernels
def test_response_norm_kernel_of_nan() -> None:
    norm = LocalResponseNorm(5, 1e-4, 0.75, 2.0)
    images = torch.ones(1, 8, 1, 1, dtype=torch.bfloat16)
    images[0, 3] = float("nan")
    result = norm(images).flatten()
    assert torch.isnan(result[1:6]).all(), "all outputs with the NaN in their window"
    assert torch.isfinite(result[[0, 6, 7]]).all()
    torch.testing.assert_close(norm(images, relu=True).flatten(), result, rtol=0, atol=0, equal_nan=True)


@needs_kernels
@given(data=st.data())
@settings(max_examples=150)
def test_fused_relu_norm_pool_equals_float64(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(TOLERANCES, key=str)))
    window, stride = data.draw(st.sampled_from([(3, 2), (2, 2), (3, 1), (5, 3)]))
    sizes = st.integers(window, window + 9)
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 70)), data.draw(sizes), data.draw(sizes))
    chosen = data.draw(st.sampled_from([(0, 1), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)]))
    pool = nn.MaxPool2d(window, stride, ceil_mode=data.draw(st.booleans()))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    images = (torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 1).to(kind)
    norm = BatchNorm(shape[1], 1e-3, 0.1)
    with torch.no_grad():
        # some are negative: the smallest value becomes the largest
        norm.weight.copy_(torch.randn(shape[1], generator=generator))
        norm.bias.copy_(torch.randn(shape[1], generator=generator))
    narrow = [layer for i, layer in enumerate((nn.ReLU(), norm, pool)) if i in chosen]
    exact = copy.deepcopy(narrow)

    def passes(layers: list[nn.Module], x: torch.Tensor, fast: bool) -> list[torch.Tensor]:
        x = x.clone().requires_grad_()
        y = fuse._relu_norm_pool(layers, x) if fast else nn.Sequential(*layers)(x)
        gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(kind).to(x.dtype)
        weights = [weight for layer in layers for weight in layer.parameters()]
        moving = [statistic for layer in layers for statistic in layer.buffers()]
        return [y.detach(), *torch.autograd.grad(y, [x, *weights], gradient), *moving]

    result = passes(narrow, images, fast=True)
    expected = passes([layer.double() for layer in exact], images.double(), fast=False)
    for a, b in zip(result, expected, strict=True):
        scale = float(b.abs().max()) + float(images.abs().max())
        assert float((a.double() - b).abs().max()) <= 4 * TOLERANCES[kind] * scale * max(1, len(images)) ** 0.5


def test_kernels_compile() -> None:
    if sys.platform != "linux" or shutil.which("g++") is None or not kernels.enabled():
        pytest.skip("no g++, or another system than Linux, or switched off")
    assert kernels.library() is not None


@pytest.mark.usefixtures("winograd_here")
@given(
    count=st.integers(1, 200),
    sides=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    channels=st.tuples(st.sampled_from([24, 32, 48, 64, 128, 160]), st.integers(1, 5)),
    groups=st.integers(1, 3),
    size=st.sampled_from([3, 5]),
    bias=st.booleans(),
)
@settings(max_examples=60)
def test_winograd_convolution_equals_float64_within_bfloat16(
    count: int, sides: tuple[int, int], channels: tuple[int, int], groups: int, size: int, bias: bool
) -> None:
    torch.manual_seed(count)
    count = max(1, count // (sides[0] * sides[1]))
    inputs, outputs = channels[0] * groups, channels[1] * 32 * groups
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=bias, groups=groups).to(memory_format=torch.channels_last)
    assert fuse._can_use_winograd(conv)
    images = torch.randn(count, inputs, *sides).to(torch.bfloat16)
    gradient = torch.randn(count, outputs, *sides).to(torch.bfloat16)
    exact = copy.deepcopy(conv).double()
    exact.weight.data = conv.weight.detach().to(torch.bfloat16).double()

    def passes(forward: Callable[[torch.Tensor], torch.Tensor], layer: nn.Conv2d, x: torch.Tensor) -> list[torch.Tensor]:
        x = x.requires_grad_()
        y = forward(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], gradient.to(y.dtype))]

    with autocast(torch.device("cpu"), "bfloat16"), mock.patch.object(fuse, "PIXELS_FOR_WINOGRAD", 0):
        result = passes(partial(fuse._convolve, conv), conv, images.clone())
    expected = passes(exact, exact, images.double())
    for a, b in zip(result, expected, strict=True):
        assert float((a.double() - b).norm()) <= 0.006 * float(b.norm()) + 1e-6


@needs_kernels
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_network_with_and_without_fused_layers(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = to_device(AlexNet(name, 5, width=1 / 8, dropout=0.0), torch.device("cpu")).train(training)
    images = torch.randn(4, 3, 99, 99).contiguous(memory_format=torch.channels_last)

    def passes(dtype: torch.dtype) -> list[torch.Tensor]:
        own = copy.deepcopy(network).to(dtype)
        logits = own(images.to(dtype))
        return [
            logits.detach(),
            *torch.autograd.grad(logits.square().sum(), list(own.parameters())),
            *(b.float() for b in own.buffers()),
        ]

    fast = passes(torch.float32)
    monkeypatch.setattr(fuse, "enabled", lambda: False)
    monkeypatch.setattr(kernels, "library", lambda: None)
    exact = passes(torch.float64)
    for a, b in zip(fast, exact, strict=True):
        assert float((a - b).norm()) <= 1e-3 * float(b.norm()) + 1e-9


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("side", [25, 33])
def test_folded_upscaling_equals_upscaled_image(name: str, side: int) -> None:
    torch.manual_seed(0)
    network = AlexNet(name, 5, width=1 / 8).double().eval()
    small = torch.randn(2, 3, side, side, dtype=torch.float64)

    def passes(images: torch.Tensor, upscale: int) -> list[torch.Tensor]:
        logits = network(images, upscale)
        return [logits.detach(), *torch.autograd.grad(logits.square().sum(), list(network.parameters()))]

    enlarged = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    for a, b in zip(passes(small, 4), passes(enlarged, 1), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", ["HWC", "CHW"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (6, 6), (9, 7)])
def test_folded_pooling_equals_pooled_maps(order: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    flatten, dense = FlattenMaps(6, order), nn.Linear(6 * 6 * 5, 7).double()
    maps = torch.randn(3, 5, *size, dtype=torch.float64)
    folded, pooled = fuse._flatten_dense(flatten, dense, maps), dense(flatten(maps))
    torch.testing.assert_close(folded, pooled, rtol=1e-12, atol=1e-12)


@needs_kernels
@given(st.integers(1, 70), st.integers(1, 40), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_dense_kernel_equals_float64(inputs: int, outputs: int, bias: bool, sliced: bool, seed: int) -> None:
    torch.manual_seed(seed)
    dense = nn.Linear(inputs, outputs, bias=bias)
    x = torch.randn(1, 2 * inputs)[:, ::2] if sliced else torch.randn(1, inputs)
    with torch.no_grad(), mock.patch.object(kernels, "call", side_effect=kernels.call) as called:
        got = fuse._dense(dense, x)
    assert called.call_count == 1
    torch.testing.assert_close(got.double(), copy.deepcopy(dense).double()(x.double()).detach(), rtol=0, atol=1e-5)


@needs_kernels
def test_dense_kernel_only_where_it_fits() -> None:
    dense, x = nn.Linear(6, 4), torch.randn(1, 6)
    with mock.patch.object(kernels, "call", side_effect=AssertionError):
        assert fuse._dense(dense, x).requires_grad
        with torch.no_grad():
            assert fuse._dense(dense, torch.randn(2, 6)).shape == (2, 4)
            assert fuse._dense(dense, x.new_empty(0, 6)).shape == (0, 4)
            assert fuse._dense(copy.deepcopy(dense).double(), x.double()).dtype == torch.float64
            with torch.autocast("cpu", torch.bfloat16):
                assert fuse._dense(dense, x).dtype == torch.bfloat16
            with pytest.raises(RuntimeError, match="shapes"):
                fuse._dense(dense, torch.randn(1, 5))


@needs_kernels
def test_bf16_cache_follows_every_weight_change() -> None:
    device = torch.device("cpu")
    torch.manual_seed(0)
    network = to_device(AlexNet("cifar10", 3, width=1 / 16, dropout=0.0), device)
    fuse.use_bf16_gradients(network)
    optimizer = build_optimizer(network, Optimizer(lr=1e-4, momentum=0.9, nesterov=True))
    images = torch.randn(4, 3, 67, 67)

    def right() -> None:
        network.eval()
        with torch.inference_mode(), autocast(device, "bfloat16"):
            result = network(images)
            fresh = copy.deepcopy(network)(images)  # its parameters are new, so nothing is cached for them
        assert torch.equal(result, fresh)
        network.train()

    def train() -> None:
        with autocast(device, "bfloat16"):
            loss = network(images).float().square().sum()
        loss.backward()
        assert network.head.weight.grad is not None
        narrow = hasattr(torch.Tensor, "grad_dtype")  # PyTorch 2.10 and later
        assert network.head.weight.grad.dtype == (torch.bfloat16 if narrow else torch.float32)
        optimizer.step()
        optimizer.zero_grad()
        right()

    train()
    train()
    with torch.no_grad():
        network.head.weight.mul_(2)
    right()
    train()
    network.load_state_dict({name: tensor * 1.5 for name, tensor in network.state_dict().items()})
    right()
    network.head.weight.data = network.head.weight.data.clone() + 1
    right()
    network.head.weight.data.mul_(2)  # does not change autograd's version counter
    right()


def hooked_small(network: AlexNet) -> list[str]:
    """Return the layers whose hooks are called for a small image that is upscaled."""
    seen: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda layer, given, out, name=name: seen.append(name))
        for name, layer in network.layers.items()
    ]
    with torch.no_grad():
        network(torch.randn(1, 3, 20, 20), 4)
    for hook in hooks:
        hook.remove()
    return seen


class Doubled(nn.Conv2d):
    """A convolution with another `forward`, as adapters have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_custom_layer_is_not_fused() -> None:
    torch.manual_seed(0)
    network = AlexNet("owt", 3, width=1 / 2).eval()
    plain = network.layers["conv2"]
    assert isinstance(plain, nn.Conv2d)
    other = Doubled(plain.in_channels, plain.out_channels, 5, padding=2)
    other.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 67, 67)
    with torch.no_grad():
        before = network.activations(images, ["conv2"])[1]["conv2"]
        network.features.conv2 = other
        after = network.activations(images, ["conv2"])[1]["conv2"]
    torch.testing.assert_close(after, 2 * before)


def test_bfloat16_network_is_not_fused() -> None:
    network = AlexNet("cifar10", 3, width=1 / 3).eval().bfloat16()
    images = torch.randn(1, 3, 67, 67).bfloat16()
    with torch.no_grad():
        result, exact = network(images), copy.deepcopy(network).float()(images.float())
    assert float((result.float() - exact).norm()) < 0.1 * float(exact.norm())


@needs_kernels
def test_hooks_and_activations_see_each_layer() -> None:
    torch.manual_seed(0)
    network = AlexNet("cifar10", 3, width=1 / 16).eval()
    images = torch.randn(2, 3, 67, 67)
    with torch.no_grad():
        logits, maps = network.activations(images, network.layer_names)
        seen: dict[str, torch.Tensor] = {}
        hooks = [
            layer.register_forward_hook(lambda layer, given, out, name=name: seen.update({name: out}))
            for name, layer in network.layers.items()
        ]
        again = network(images)
        for hook in hooks:
            hook.remove()
        joined = network(images)
    assert list(seen) == list(network.layer_names) == list(maps)
    assert hooked_small(network) == list(network.layer_names)
    for name in seen:
        torch.testing.assert_close(seen[name], maps[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(joined, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("ALEXNET_KERNELS", "0"), ("PATH", "."), ("ALEXNET_CACHE", "file")])
def test_kernels_can_be_switched_off(name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setenv(name, value)
    assert isinstance(kernels._library.__wrapped__(), str)  # why there are none


@needs_kernels
@pytest.mark.parametrize("form", ["pytorch", "2012", "keras"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_optimizer_steps_with_and_without_kernels(
    form: str, momentum: float, nesterov: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_settings = Optimizer(form=form, lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.01, decays="all")

    def trained() -> list[torch.Tensor]:
        torch.manual_seed(0)
        network = AlexNet("cifar10", 3, width=1 / 16).to(memory_format=torch.channels_last)
        optimizer = build_optimizer(network, recipe_settings)
        for step in range(4):
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape)
                if step % 2 and parameter.ndim == 4:  # gradients come with either memory order
                    parameter.grad = parameter.grad.contiguous(memory_format=torch.channels_last)
            set_lr(optimizer, 0.1 / (step + 1))
            optimizer.step()
        return [parameter.detach() for parameter in network.parameters()]

    with_kernels = trained()
    monkeypatch.setattr(kernels, "library", lambda: None)
    for a, b in zip(with_kernels, trained(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_fused_forms_are_planned_once_until_the_layers_change(monkeypatch: pytest.MonkeyPatch) -> None:
    plans, fuse_layers = [], fuse.fuse_layers
    monkeypatch.setattr(fuse, "fuse_layers", lambda *args: plans.append(args) or fuse_layers(*args))
    network = AlexNet("cifar10", 10, width=1 / 16).eval()
    images = torch.randn(1, 3, 32, 32)

    def planned(change: Callable[[], object]) -> bool:
        change()
        before = len(plans)
        network(images, 4)
        network(images, 4)
        return len(plans) > before

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    assert planned(lambda: None), "at first"
    assert not planned(lambda: None)
    assert planned(lambda: setattr(network, "head", torch.nn.Linear(network.head.in_features, 3)))
    assert network(images, 4).shape == (1, 3)
    assert planned(lambda: hooks.append(network.features[0].register_forward_hook(lambda *_: None)))
    assert planned(lambda: hooks.pop().remove())
    assert planned(lambda: monkeypatch.setenv("ALEXNET_KERNELS", "0"))
    assert not planned(lambda: None)
