"""The 2012 network as in the paper and in its source code: one test per fact, and training compared with plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet import AlexNet
from alexnet.data.augment import DRAWS, training_input
from alexnet.data.batches import SplitImages, batch_bounds, epoch_batches
from alexnet.data.pixels import Pixels
from alexnet.network.layers import Dropout2012
from alexnet.network.lrn import LocalMapNorm, LocalResponseNorm
from alexnet.recipe import load
from alexnet.training.optimizer import build_optimizer, set_lr
from alexnet.training.schedule import epoch_settings, lr_at
from conftest import mostly_long

BOTH = pytest.mark.parametrize("name", ["paper", "code2012"])


def on_meta(name: str, classes: int = 1000) -> AlexNet:
    with torch.device("meta"):
        return AlexNet(name, classes)


def kinds(network: AlexNet, last: str) -> list[str]:
    names = list(network.layer_names)
    return names[: names.index(last) + 1]


# Facts on which the paper and the source agree


@BOTH
def test_towers_have_48_128_192_192_128_channels(name: str) -> None:
    network = on_meta(name)
    convolutions = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels // 2 for c in convolutions] == [48, 128, 192, 192, 128]
    assert [c.kernel_size[0] for c in convolutions] == [11, 5, 3, 3, 3]
    assert [c.stride[0] for c in convolutions] == [4, 1, 1, 1, 1]
    assert [c.groups for c in convolutions] == [1, 2, 1, 2, 2], "conv1 sees the image and conv3 both towers"
    assert sum(p.numel() for p in network.parameters()) == 60_965_224


@BOTH
def test_max_pools_overlap_and_dropout_follows_fc6_and_fc7(name: str) -> None:
    layers = on_meta(name).layers
    pools = [layer for layer in layers.values() if isinstance(layer, nn.MaxPool2d)]
    assert [(p.kernel_size, p.stride, p.padding) for p in pools] == [(3, 2, 0)] * 3
    dropouts = {key: layer.p for key, layer in layers.items() if isinstance(layer, Dropout2012)}
    assert dropouts == {"dropout6": 0.5, "dropout7": 0.5}


@BOTH
def test_initial_biases_are_one_in_conv2_conv4_conv5_fc6_and_fc7(name: str) -> None:
    network = AlexNet(name, 10, width=1 / 16)
    for key, layer in network.layers.items():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.bias is not None
            assert set(layer.bias.tolist()) == {float(key in {"conv2", "conv4", "conv5", "fc6", "fc7"})}, key


@BOTH
def test_momentum_weight_decay_and_batch_size(name: str) -> None:
    recipe = load(name)
    assert (recipe.optimizer.momentum, recipe.optimizer.weight_decay, recipe.train.batch_size) == (0.9, 0.0005, 128)
    assert recipe.optimizer.form == "2012"


@BOTH
def test_response_norm_spans_five_channels_of_one_tower(name: str) -> None:
    norms = [layer for layer in on_meta(name).features if isinstance(layer, LocalResponseNorm)]
    assert [(n.size, n.k, n.beta, n.towers) for n in norms] == [(5, 2.0, 0.75, 2)] * 2


@BOTH
def test_images_are_cached_at_256(name: str) -> None:
    images = load(name).images
    assert (images.cache_size, images.fit, images.value_range, images.std) == (256, "crop", 255, 1.0)


@BOTH
def test_dropout_drops_in_training_and_halves_in_evaluation(name: str) -> None:
    layer = Dropout2012(0.5)
    units = torch.ones(4, 10_000)
    result = layer.train()(units)
    assert set(result.unique().tolist()) == {0.0, 1.0}
    assert float(result.mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(layer.eval()(units), units / 2)


# Where they differ


def test_layer_1_order_in_paper_and_source() -> None:
    assert kinds(on_meta("paper"), "pool1") == ["conv1", "relu1", "norm1", "pool1"]
    assert kinds(on_meta("code2012"), "relu1") == ["pad1", "conv1", "norm1", "pool1", "relu1"]


def test_layer_2_of_the_source_has_map_norm() -> None:
    assert kinds(on_meta("paper"), "pool2")[4:] == ["conv2", "relu2", "norm2", "pool2"]
    assert kinds(on_meta("code2012"), "pool2")[5:] == ["conv2", "relu2", "norm2", "mapnorm2", "pool2"]
    (norm,) = (layer for layer in on_meta("code2012").features if isinstance(layer, LocalMapNorm))
    assert (norm.size, norm.alpha, norm.beta, norm.k) == (5, pytest.approx(0.001 / 25), 0.75, 1.0)


@pytest.mark.parametrize(("name", "alpha"), [("paper", 1e-4), ("code2012", 2e-5)])
def test_response_norm_alpha_in_paper_and_source(name: str, alpha: float) -> None:
    for layer in on_meta(name).features:
        if isinstance(layer, LocalResponseNorm):
            assert layer.alpha == pytest.approx(alpha)


@pytest.mark.parametrize(("name", "wide"), [("paper", 0.01), ("code2012", 0.03)])
def test_initial_weights(name: str, wide: float) -> None:
    torch.manual_seed(0)
    network = AlexNet(name, 100, width=0.5)
    for key, layer in network.layers.items():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            std = wide if key in {"conv3", "conv4", "conv5"} else 0.01
            assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.03), key
            assert float(layer.weight.detach().mean()) == pytest.approx(0, abs=0.03 * std), key


@pytest.mark.parametrize(("name", "side"), [("paper", 227), ("code2012", 224)])
def test_feature_map_sizes_are_55_27_13_6(name: str, side: int) -> None:
    network, recipe = on_meta(name), load(name)
    with torch.device("meta"):
        _, maps = network.activations(torch.zeros(1, 3, side, side), ["conv1", "pool1", "pool2", "pool5"])
    assert [m.shape[2] for m in maps.values()] == [55, 27, 13, 6]
    assert (recipe.images.crop, recipe.images.input) == (side, side)


def test_lr_schedule_of_the_paper_is_plateau() -> None:
    recipe = load("paper")
    assert (recipe.schedule.kind, recipe.schedule.metric, recipe.schedule.factor) == ("plateau", "val_error", 0.1)
    assert recipe.optimizer.lr * recipe.schedule.factor**3 == pytest.approx(recipe.schedule.floor)
    assert recipe.train.epochs == 90


@pytest.mark.parametrize(
    ("epoch", "weights", "conv1", "noise"),
    [
        (1, 1e-2, 1e-2, 0.1),
        (24, 1e-2, 1e-2, 0.1),
        (25, 1e-3, 1e-3, 0.1),
        (51, 1e-4, 1e-4, 0.1),
        (67, 1e-4, 1e-5, 0.0),
        (72, 1e-4, 0.0, 0.0),
        (79, 1e-5, 0.0, 0.0),
        (90, 1e-5, 0.0, 0.0),
    ],
)
def test_lr_schedule_of_the_source_by_epoch(epoch: int, weights: float, conv1: float, noise: float) -> None:
    recipe, network = load("code2012"), AlexNet("code2012", 3, width=1 / 16)
    optimizer = build_optimizer(network, recipe.optimizer)
    now = epoch_settings(recipe.schedule, epoch)
    rate = lr_at(recipe.schedule, recipe.optimizer.lr, 0.5, epoch)
    set_lr(optimizer, rate, {**recipe.optimizer.lr_scale, **now.lr_scale})
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["conv1.weight"] == pytest.approx(conv1)
    assert rates["conv1.bias"] == pytest.approx(0.02 if conv1 else 0.0)
    for layer in ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        assert rates[f"{layer}.weight"] == pytest.approx(weights)
        assert rates[f"{layer}.bias"] == pytest.approx(0.02), "twice the rate at the start, and never lowered"
    assert (recipe.augment.colour_noise if now.colour_noise is None else now.colour_noise) == noise
    assert recipe.train.epochs == 90


def test_weight_decay_of_biases_in_paper_and_source() -> None:
    for name, decay in (("paper", 0.0005), ("code2012", 0.0)):
        optimizer = build_optimizer(AlexNet(name, 3, width=1 / 16), load(name).optimizer)
        decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
        assert {value for key, value in decays.items() if key.endswith("bias")} == {decay}
        assert {value for key, value in decays.items() if key.endswith("weight")} == {0.0005}


def made_pixels(count: int, side: int) -> SplitImages:
    """Images in which red encodes the row of each pixel, and green its column."""
    values = np.zeros((count, side, side, 3), np.uint8)
    values[..., 0], values[..., 1] = np.mgrid[:side, :side]
    preprocessing = load("code2012").with_settings({"images.mean": 0.0}).images.resolved()
    return SplitImages(Pixels(values.ravel(), np.full((count, 2), side), preprocessing), np.arange(count), np.arange(count))


def test_random_crops_of_the_source_are_shared_by_32_images() -> None:
    recipe = load("code2012").with_settings({"images.mean": 0.0, "augment.colour_noise": 0.0})
    images, preprocessing, seen = made_pixels(256, 256), recipe.images.resolved(), set()
    for batch in epoch_batches(images, batch_bounds(256, 128), seed=0, epoch=1, together=recipe.augment.together):
        assert batch.draws is not None
        x = training_input(batch.images, batch.draws, preprocessing, recipe.augment)
        assert x.shape == (128, 3, 224, 224)
        corners = [(int(i[0, 0, 0]), int(i[1, 0, 0]), int(i[1, 0, -1])) for i in x]
        for start in range(0, 128, 32):
            assert len(set(corners[start : start + 32])) == 1, "32 successive images share a crop and a flip"
        for top, left, right in corners:
            assert 0 <= top <= 32
            assert 0 <= min(left, right) <= 32
            assert abs(left - right) == 223
        seen |= set(corners)
    assert len(seen) == 8
    assert {left > right for _, left, right in seen} == {True, False}
    assert (256 - 224 + 1) ** 2 * 2 == 2178


def test_random_crops_of_the_paper_are_per_image() -> None:
    recipe = load("paper")
    assert recipe.augment.together == 1
    assert recipe.augment.crop is True
    assert recipe.augment.horizontal_flip is True


def noise(name: str, axes: np.ndarray, count: int = 4000) -> np.ndarray:
    """Return the colours of `count` equal grey images after colour noise, N 3."""
    recipe = load(name).with_settings({"augment.colour_axes": axes.tolist(), "images.mean": 0.0})
    recipe = recipe.with_settings({"images.cache_size": 8, "images.crop": 8, "images.input": 8, "augment.crop": False})
    preprocessing, draws = (
        recipe.images.resolved(),
        torch.from_numpy(np.random.default_rng(0).random((count, len(DRAWS)), np.float32)),
    )
    x = training_input(torch.full((count, 8, 8, 3), 100, dtype=torch.uint8), draws, preprocessing, recipe.augment)
    assert torch.equal(x, x[:, :, :1, :1].expand_as(x)), "one colour for a whole image"
    return x[:, :, 0, 0].double().numpy()


def test_colour_noise_follows_principal_components() -> None:
    generator = np.random.default_rng(1)
    directions = np.linalg.qr(generator.standard_normal((3, 3)))[0]
    axes = directions * np.array([0.3, 0.1, 0.02])[:, None]
    for name, shrink in (("paper", 1.0), ("code2012", 1.1)):
        result = noise(name, axes) * shrink - 100
        expected = (0.1 * 255) ** 2 * axes.T @ axes
        np.testing.assert_allclose(np.cov(result.T), expected, atol=0.06 * np.abs(expected).max())


def test_colour_noise_scale_in_paper_and_source() -> None:
    assert (load("paper").augment.colour_axes, load("code2012").augment.colour_axes) == ("variances", "deviations")
    assert (load("paper").augment.colour_shrink, load("code2012").augment.colour_shrink) == (False, True)


def test_mean_image_crop_in_paper_and_source() -> None:
    mean = np.random.default_rng(0).uniform(0, 255, (256, 256, 3)).astype(np.float32)
    image = np.random.default_rng(1).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    draws = torch.full((1, len(DRAWS)), 0.75)  # an off-centre crop, not mirrored
    for name in ("paper", "code2012"):
        recipe = load(name).with_settings({"augment.colour_noise": 0.0})
        side = recipe.images.input
        corner, centre = int(0.75 * (256 - side + 1)), (256 - side) // 2
        x = training_input(torch.from_numpy(image), draws, recipe.images.resolved(mean), recipe.augment)
        under = corner if name == "paper" else centre
        expected = image[0, corner : corner + side, corner : corner + side] - mean[under : under + side, under : under + side]
        np.testing.assert_allclose(x[0].permute(1, 2, 0).numpy(), expected, atol=1e-4)


# Twenty steps compared with networks written out in plain PyTorch, one tower at a time

Weights = dict[str, Tensor]


def tower(w: Weights, name: str, x: Tensor, half: int, **options: int) -> Tensor:
    """A convolution of one tower: its half of the kernels."""
    return F.conv2d(x, w[f"{name}.weight"].chunk(2)[half], w[f"{name}.bias"].chunk(2)[half], **options)


def dense(w: Weights, x: Tensor) -> Tensor:
    for name in ("fc6", "fc7"):
        x = F.relu(F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"]))
    return F.linear(x, w["fc8.weight"], w["fc8.bias"])


def plain_paper(w: Weights, images: Tensor) -> Tensor:
    towers = []
    for half in (0, 1):
        x = F.relu(tower(w, "conv1", images, half, stride=4))
        x = F.max_pool2d(F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0), 3, 2)
        x = F.relu(tower(w, "conv2", x, half, padding=2))
        towers.append(F.max_pool2d(F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0), 3, 2))
    both, towers = torch.cat(towers, 1), []
    for half in (0, 1):
        x = F.relu(tower(w, "conv3", both, half, padding=1))
        x = F.relu(tower(w, "conv4", x, half, padding=1))
        towers.append(F.max_pool2d(F.relu(tower(w, "conv5", x, half, padding=1)), 3, 2))
    return dense(w, torch.cat(towers, 1).flatten(1))


def plain_code2012(w: Weights, images: Tensor) -> Tensor:
    images = F.pad(images, (0, 3, 0, 3))
    towers = []
    for half in (0, 1):
        x = tower(w, "conv1", images, half, stride=4)
        x = F.relu(F.max_pool2d(F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=2.0), 3, 2))
        x = F.relu(tower(w, "conv2", x, half, padding=2))
        x = F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=2.0)
        count, channels, height, width = x.shape
        squares = F.unfold(x.square(), 5, padding=2).view(count, channels, 25, height, width).sum(2)
        towers.append(F.max_pool2d(x / (1 + 0.001 / 25 * squares) ** 0.75, 3, 2))
    both, towers = torch.cat(towers, 1), []
    for half in (0, 1):
        x = F.relu(tower(w, "conv3", both, half, padding=1))
        x = F.relu(tower(w, "conv4", x, half, padding=1))
        towers.append(F.relu(F.max_pool2d(tower(w, "conv5", x, half, padding=1), 3, 2)))
    return dense(w, torch.cat(towers, 1).flatten(1))


@mostly_long(("name", "plain"), [("paper", plain_paper), ("code2012", plain_code2012)], ("paper", plain_paper))
def test_training_equals_plain_pytorch_for_20_steps(name: str, plain: Callable[[Weights, Tensor], Tensor]) -> None:
    """In float64, with larger initial weights, which a narrow network needs to learn, and a learning rate that drops midway."""
    torch.manual_seed(0)
    recipe = load(name)
    network = AlexNet(name, 7, width=1 / 8, dropout=0.0).double()
    names = {p: group["name"] for group in build_optimizer(network, recipe.optimizer).param_groups for p in group["params"]}
    with torch.no_grad():
        for parameter in names:
            if parameter.ndim > 1:
                parameter.normal_(std=(1.5 / parameter[0].numel()) ** 0.5)
            else:
                parameter.mul_(0.1)
    weights = {key: parameter.detach().clone().requires_grad_() for parameter, key in names.items()}
    before = {key: weight.detach().clone() for key, weight in weights.items()}
    velocity = {key: torch.zeros_like(weight) for key, weight in weights.items()}
    optimizer = build_optimizer(network, recipe.optimizer)
    side = recipe.images.input
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        images = torch.randn(3, 3, side, side, dtype=torch.float64, generator=generator)
        targets = torch.randint(7, (3,), generator=generator)
        rate = 0.01 if step < 10 else 0.002
        set_lr(optimizer, rate, recipe.optimizer.lr_scale)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), targets)
        loss.backward()
        optimizer.step()
        expected = F.cross_entropy(plain(weights, images), targets)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-10), step
        gradients = torch.autograd.grad(expected, list(weights.values()))
        with torch.no_grad():
            for (key, weight), gradient in zip(weights.items(), gradients, strict=True):
                bias = key.endswith("bias")
                lr = rate * 2 if bias and name == "code2012" else rate
                decay = 0.0 if bias and name == "code2012" else 0.0005
                velocity[key] = 0.9 * velocity[key] - lr * (gradient + decay * weight)
                weight += velocity[key]
    for parameter, key in names.items():
        assert not torch.equal(parameter, before[key]), key
        distance = (parameter - weights[key]).detach().norm() / weights[key].detach().norm()
        assert float(distance) < 1e-10, key
