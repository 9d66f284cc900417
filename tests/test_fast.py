"""The additions of recipe `fast`: progressive resizing, upscaling, whitening initialisation, Muon."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet.data.augment import DRAWS
from alexnet.data.batches import SplitImages, batch_bounds, epoch_batches
from alexnet.data.dataset import resolve
from alexnet.data.pixels import Pixels
from alexnet.data.preprocessing import to_input
from alexnet.data.sources import open_table
from alexnet.errors import RecipeError
from alexnet.network.alexnet import AlexNet
from alexnet.recipe import Optimizer, Preprocessing, load
from alexnet.training.optimizer import SGD, build_optimizer, orthogonalize, set_lr
from alexnet.training.schedule import input_size_at
from alexnet.training.whitening import whiten
from conftest import photos_of


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_muon_orthogonalisation_keeps_singular_vectors(rows: int, columns: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(rows, columns))
    result = orthogonalize(torch.from_numpy(matrix).float(), rounds=6).double().numpy()
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ result @ right.T  # diagonal, as the singular vectors are kept
    sizes = inside.diagonal()
    large = np.linalg.svd(matrix, compute_uv=False) > 0.05 * np.linalg.norm(matrix)  # tiny singular values need more rounds
    assert ((sizes[large] > 0.5) & (sizes[large] < 1.4)).all()
    assert np.abs(inside - np.diag(sizes)).max() < 0.25


def test_muon_moves_convolutions_by_orthogonalised_momentum() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 3, 2, 2))
    start, gradients = weight.detach().clone(), [torch.randn_like(weight) for _ in range(3)]
    optimizer = SGD([{"params": [weight], "form": "muon", "weight_decay": 0.1}], 0.5, 0.6, form="pytorch", nesterov=True)
    expected, velocity = start, torch.zeros_like(start)
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
        velocity = 0.6 * velocity + gradient
        step = orthogonalize((gradient + 0.6 * velocity).reshape(6, 12)).reshape(6, 3, 2, 2)
        expected = expected * (1 - 0.5 * 0.1) - 0.5 * step
        torch.testing.assert_close(weight.detach(), expected)


def test_muon_lr_follows_the_schedule() -> None:
    network = AlexNet("cifar10", 3, width=1 / 16)
    optimizer = build_optimizer(network, Optimizer(lr=0.02, muon_lr=0.3, lr_scale={"fc6": 0.5}))
    set_lr(optimizer, 0.01, {"fc6": 0.5})  # half of the peak
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["conv3.weight"] == pytest.approx(0.15)
    assert rates["conv3.bias"] == pytest.approx(0.01)
    assert rates["fc6.weight"] == pytest.approx(0.005)
    assert {group["name"] for group in optimizer.param_groups if group.get("form")} == {f"conv{i}.weight" for i in range(1, 6)}


def test_alternating_flip_every_other_epoch() -> None:
    count = 50
    preprocessing = Preprocessing(cache_size=1, input=1, fit="crop", reduced_decode=False, resize="bilinear")
    pixels = Pixels(np.repeat(np.arange(count, dtype=np.uint8), 3), np.ones((count, 2), np.int64), preprocessing)
    images = SplitImages(pixels, np.arange(count), np.zeros(count, np.int64))

    def mirrored(epoch: int) -> dict[int, bool]:
        result = {}
        for batch in epoch_batches(images, batch_bounds(count, 7), 3, epoch, alternate=True):
            assert batch.draws is not None
            turned = batch.draws[:, DRAWS.index("horizontal_flip")] < 0.5
            result |= dict(zip(batch.images[:, 0, 0, 0].tolist(), turned.tolist(), strict=True))
        return result

    first, second, third = mirrored(1), mirrored(2), mirrored(3)
    assert all(first[image] != second[image] for image in range(count))
    assert first == third
    assert 10 < sum(first.values()) < 40


@pytest.mark.parametrize(("upscale", "expected"), [(4, [100, 100, 128]), (1, [99, 99, 128])])
def test_progressive_resize_in_whole_blocks(upscale: int, expected: list[int]) -> None:
    recipe = load("fast").with_settings(
        {"images.input": 128, "images.upscale": upscale, "schedule.progressive_resize": [[0.5, 0.775]]}
    )
    assert [input_size_at(recipe, share, 67) for share in (0.0, 0.49, 0.5)] == expected
    tiny = recipe.with_settings({"images.input": 68})
    assert input_size_at(tiny, 0.0, 67) == (68 if upscale == 4 else 67)


def test_progressive_resize_conflicts_are_refused() -> None:
    for settings, line in (
        ({"images.upscale": 4, "images.input": 130}, "images.input is 130, which is not a multiple of images.upscale, 4"),
        ({"schedule.progressive_resize": [[0.5, 1.5]]}, "schedule.progressive_resize"),
        ({"images.upscale": 4, "images.cache_size": "full"}, "images.upscale is 4, but full images"),
        ({"augment.together": 2}, "augment.alternating_flip is true, but augment.together is 2"),
    ):
        with pytest.raises(RecipeError, match=line):
            load("fast").with_settings(settings)


def test_upscale_auto(photos: Path) -> None:
    recipe = load("fast")
    small = resolve(recipe, open_table("digits", None)).images
    assert (small.cache_size, small.upscale) == (8, 4)
    photo = resolve(recipe.with_settings({"images.input": 67}), open_table(str(photos), None)).images  # 40 x 40 pixels
    assert (photo.cache_size, photo.upscale) == (40, 1)


@pytest.mark.parametrize(
    ("side", "count", "settings", "expected"),
    [
        (200, 1000, {}, 227),  # 700 to train on
        (200, 2000, {}, 227),
        (200, 2200, {}, 128),
        (200, 1000, {"train.minutes": 15.0}, 227),
        (200, 1000, {"train.minutes": 3.0}, 128),  # too few epochs at 227 pixels
        (200, 300, {"train.minutes": 3.0}, 227),
        (200, 4000, {"train.minutes": 15.0}, 227),
        (200, 4000, {"train.minutes": 13.0}, 128),
        (120, 1000, {}, 128),  # no more to be seen
        (32, 1000, {}, 128),
        (200, 1000, {"images.input": 100}, 100),
    ],
)
def test_input_auto(side: int, count: int, settings: dict[str, Any], expected: int) -> None:
    table = photos_of(side, count)
    recipe = resolve(load("fast").with_settings(settings), table)
    assert recipe.images.input_side == expected
    assert recipe.images.cache_size == min(side, expected)
    declared = replace(table, splits=np.array(["train"] * (count // 2) + ["test"] * (count - count // 2)))
    assert resolve(load("fast").with_settings(settings), declared).images.input_side in (expected, 227)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"images.input": 160}, 2),  # 40 x 40 pixels, upscaled
        ({"images.input": 67}, 1),
        ({"images.input": 160, "augment.horizontal_flip": False}, 1),
        ({"images.input": 67, "images.views": 10}, 10),
    ],
)
def test_views_auto(photos: Path, settings: dict[str, Any], count: int) -> None:
    table = open_table(str(photos), None)
    assert resolve(load("fast").with_settings(settings), table).images.view_count == count
    digits = resolve(load("fast").with_settings(settings), open_table("digits", None)).images
    assert digits.view_count == (count if count == 10 else 1), "digits are never mirrored"


@pytest.mark.parametrize("upscale", [1, 4])
def test_whitening_init_decorrelates_outputs(upscale: int) -> None:
    rng = np.random.default_rng(0)
    side, count = 17, 200
    smooth = rng.normal(size=(count, side + 4, side + 4, 3)).cumsum(1).cumsum(2)[:, 4:, 4:]  # neighbours are alike
    values = ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)
    preprocessing = Preprocessing(
        cache_size=side, input=side * upscale, fit="crop", reduced_decode=False, resize="bilinear", upscale=upscale
    )
    images = SplitImages(
        Pixels(values.reshape(-1), np.full((count, 2), side), preprocessing), np.arange(count), np.zeros(count, np.int64)
    )
    network = AlexNet("cifar10", 3)
    whiten(network, images, preprocessing, seed=0)
    weight = network.layers["conv1"].weight.detach()
    x = to_input(torch.from_numpy(values), preprocessing)
    large = x.repeat_interleave(upscale, 2).repeat_interleave(upscale, 3)
    with torch.no_grad():
        outputs = torch.nn.functional.conv2d(large, weight, stride=4 if upscale == 4 else 1)
    half = 27 if upscale == 4 else 48
    torch.testing.assert_close(weight[:half], -weight[half : 2 * half])
    first = outputs[:, :4].permute(1, 0, 2, 3).flatten(1).double()  # the four largest components
    covariance = torch.cov(first)
    correlation = torch.corrcoef(first) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.15
    assert ((covariance.diagonal() > 0.3) & (covariance.diagonal() < 1.5)).all()
