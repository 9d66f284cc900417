"""Random resized crops, erasing, mixup and CutMix, compared with Pillow and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import expit
from scipy.stats import beta
from torch.nn.functional import one_hot

from alexnet.data.augment import DRAWS, boxes, by_name, training_input
from alexnet.data.batches import SplitImages, batch_bounds, epoch_batches
from alexnet.data.geometry import resample
from alexnet.data.mixing import ERASED_AREA, ERASED_ASPECT, erased, mix_targets, mixture
from alexnet.data.pixels import Pixels
from alexnet.recipe import Augment, Train
from alexnet.training.optimizer import Loss
from conftest import assert_near, make_preprocessing

STILL = {"horizontal_flip": False}


def noise(count: int, side: int) -> torch.Tensor:
    rng = np.random.default_rng([count, side])
    return torch.from_numpy(rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def random_draws(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, len(DRAWS), generator=torch.Generator().manual_seed(seed))


# Random resized crops


@given(st.integers(1, 40), st.integers(1, 40), st.data())
@settings(max_examples=60)
def test_resampling_a_box_equals_pillows(side: int, size: int, data: st.DataObject) -> None:
    fractions = st.floats(0, 1, width=32)
    spans = []
    for _ in range(2):
        length = side * max(0.05, data.draw(fractions))
        spans.append((data.draw(fractions) * (side - length), length))
    (top, height), (left, width) = spans
    image = noise(1, side).float()
    result = resample(image, torch.tensor([[top, left, height, width]]), size)[0].permute(1, 2, 0).numpy()
    box = (left, top, left + width, top + height)
    for channel in range(3):
        picture = Image.fromarray(image[0, :, :, channel].numpy(), "F")
        expected = np.array(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))
        assert_near(result[..., channel], expected, 0.02)


@given(st.floats(0.05, 1), st.floats(0.05, 1), st.floats(1, 4))
@settings(max_examples=40)
def test_parts_are_inside_the_image_and_have_the_area_asked_for(first: float, second: float, aspect: float) -> None:
    low, high = sorted((first, second))
    draws = random_draws(200)
    draws[0], draws[1] = 0.0, 1 - 2**-24
    top, left, height, width = boxes(by_name(draws), Augment(area=(low, high), aspect=aspect), 100).double().T.numpy()
    area = height * width / 1e4
    assert ((area > low - 1e-4) & (area < high + 1e-4)).all()
    assert (np.abs(np.log(width / height)) < math.log(aspect) + 1e-4).all()
    assert (np.minimum(top, left) > -1e-3).all()
    assert (np.maximum(top + height, left + width) < 100 + 1e-3).all()
    assert_near(area, low + draws[:, DRAWS.index("area")].numpy() * (high - low), 1e-4)


def test_a_crop_is_what_the_network_gets() -> None:
    """Alone and after a flip; from the size in the cache to the size of the input, upscaling left out."""
    images, draws = noise(3, 20), random_draws(3)
    preprocessing = make_preprocessing(cache_size=20, input=32, upscale=2, mean=(100.0, 90.0, 80.0), std=(50.0, 40.0, 30.0))
    changes = Augment(area=(0.2, 0.6), horizontal_flip=True)
    x = training_input(images, draws, preprocessing, changes)
    flipped = torch.where((draws[:, DRAWS.index("horizontal_flip")] < 0.5)[:, None, None, None], images.flip(2), images)
    boxed = resample(flipped.float(), boxes(by_name(draws), changes, 20), 16)
    expected = (boxed - torch.tensor([100.0, 90, 80])[:, None, None]) / torch.tensor([50.0, 40, 30])[:, None, None]
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)
    assert x.is_contiguous(memory_format=torch.channels_last)


# Erasing


@given(st.integers(1, 64), st.integers(0, 99))
@settings(max_examples=30)
def test_erasing_sets_one_rectangle_to_the_mean(side: int, seed: int) -> None:
    draws = random_draws(40, seed)
    images = torch.full((40, side, side, 3), 200, dtype=torch.uint8)
    x = training_input(images, draws, make_preprocessing(cache_size=side, input=side), Augment(**STILL, erasing=0.5))
    gone = (x == 0).all(1)
    assert torch.equal(x == 0, gone[:, None].expand_as(x))
    assert torch.equal(gone.any(2).any(1), draws[:, DRAWS.index("erasing")] < 0.5)
    rectangles = erased(by_name(draws), side)
    for hole, top, left, bottom, right in zip(gone, *rectangles, strict=True):
        if hole.any():
            expected = torch.zeros_like(hole)
            expected[top:bottom, left:right] = True
            assert torch.equal(hole, expected)


def test_erased_rectangles_have_the_areas_of_the_paper() -> None:
    top, left, bottom, right = erased(by_name(random_draws(4000)), 1000)
    height, width = (bottom - top).double(), (right - left).double()
    whole = (height < 1000) & (width < 1000)
    area, aspect = (height * width / 1e6)[whole], (height / width)[whole]
    for values, (low, high) in ((area, ERASED_AREA), (aspect, ERASED_ASPECT)):
        assert low * 0.97 < values.min() < low * 1.5
        assert high * 0.9 < values.max() < high * 1.02
    assert min(top.min(), left.min()) >= 0
    assert max(bottom.max(), right.max()) <= 1000


# Mixing


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (1.0, 0.5)])
def test_mixed_images_and_targets_are_shares_of_two(mixup: float, cutmix: float) -> None:
    """Image k is of level k alone, so that each pixel of a mixture reveals its weights."""
    count, side = 30, 16
    images = torch.arange(count + 1, dtype=torch.uint8)[:, None, None, None].expand(-1, side, side, 3)
    draws, changes = random_draws(count + 1), Augment(**STILL, mixup=mixup, cutmix=cutmix)
    x = training_input(images, draws, make_preprocessing(cache_size=side, input=side), changes)
    assert x.shape == (count, 3, side, side)
    of_next = x.double() - torch.arange(count)[:, None, None, None]
    how = mixture(by_name(draws[:-1]), changes, side)
    targets = mix_targets(torch.arange(count + 1), how, count + 1).double()
    assert_near(targets.sum(1), np.ones(count), 1e-6)
    assert_near((targets[:, 1:].diagonal()), of_next.mean((1, 2, 3)), 1e-3)
    cut = draws[:-1, DRAWS.index("mixing")] < (0.5 if mixup else 1.0) if cutmix else torch.zeros(count, dtype=torch.bool)
    assert ((of_next[cut] - of_next[cut].round()).abs() < 1e-3).all(), "a pixel is of one image or the other"
    flat = of_next[~cut].flatten(1)
    assert ((flat - flat[:, :1]).abs() < 1e-3).all(), "the same share of all pixels"


@pytest.mark.parametrize("parameter", [0.2, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(parameter: float) -> None:
    draws = random_draws(1000)
    uniform = draws[:, DRAWS.index("share")] = (torch.arange(1000) + 0.5) / 1000
    share = mixture(by_name(draws), Augment(mixup=parameter), 32).share
    assert_near(share, beta(parameter, parameter).ppf(uniform), 1e-5)
    cut = mixture(by_name(draws), Augment(cutmix=parameter), 64).share
    assert (cut >= share - 1e-5).all(), "a rectangle that is cut off at a border is smaller"
    draws[:, [DRAWS.index("cut_down"), DRAWS.index("cut_right")]] = 0.5
    side = 2 * np.floor(32 * np.sqrt(1 - share.double().numpy()) + 1e-6)
    centred = mixture(by_name(draws), Augment(cutmix=parameter), 64).share
    assert (np.abs(centred.numpy() - (1 - (side / 64) ** 2)) < 1e-5).mean() > 0.99, "rounding may take a pixel from a side"


def test_mixing_does_not_depend_on_the_batch() -> None:
    """Also the last image of an epoch, which is mixed with the first."""
    count, changes = 23, Augment(horizontal_flip=True, mixup=0.4, cutmix=1.0, area=(0.3, 1.0), trivial=True, erasing=0.5)
    pixels = Pixels(noise(count, 8).numpy().ravel(), np.full((count, 2), 8), make_preprocessing(cache_size=8))
    images = SplitImages(pixels, np.arange(count), np.arange(count) % 5)
    preprocessing = make_preprocessing(cache_size=8, input=8)

    def epoch(bounds: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        batches = list(epoch_batches(images, bounds, 0, 1, mixed=True))
        assert [len(batch.targets) for batch in batches] == [end - start + 1 for start, end in bounds]
        x = [training_input(batch.images, batch.draws, preprocessing, changes) for batch in batches if batch.draws is not None]
        how = [mixture(by_name(batch.draws[:-1]), changes, 8) for batch in batches if batch.draws is not None]
        return torch.cat(x), torch.cat([mix_targets(b.targets, h, 5) for b, h in zip(batches, how, strict=True)])

    whole = epoch([(0, count)])
    for size in (1, 4, 10):
        for result, expected in zip(epoch(batch_bounds(count, size)), whole, strict=True):
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)
    order = next(iter(epoch_batches(images, [(0, count)], 0, 1))).targets.tolist()
    assert set(whole[1][-1].nonzero().flatten().tolist()) <= {order[-1], order[0]}


@pytest.mark.parametrize("loss", ["cross-entropy", "binary"])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_the_loss_of_mixed_targets_is_that_of_both_labels(loss: str, weights: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    labels[:20] = 0  # so that balanced weights differ
    train = Train.model_validate({"loss": loss, "class_weights": weights, "label_smoothing": 0.1})
    function = Loss(train, labels, 3, torch.device("cpu"))
    logits, targets = torch.from_numpy(rng.normal(size=(7, 3))).float(), torch.from_numpy(labels[10:17])
    whole = one_hot(targets, 3).float()
    torch.testing.assert_close(function(logits, whole), function(logits, targets))
    assert function.normalizer(whole) == pytest.approx(function.normalizer(targets))

    other, share = one_hot(torch.from_numpy(labels[30:37]), 3), torch.rand(7, 1, generator=torch.Generator().manual_seed(0))
    soft = share * whole + (1 - share) * other
    z, shares, weight = logits.double().numpy(), soft.double().numpy(), np.ones(3)
    if weights == "balanced":
        weight = len(labels) / (3 * np.bincount(labels))
    if loss == "binary":
        smoothed, p = shares * 0.9 + 0.05, expit(z)
        each = -(smoothed * np.log(p) + (1 - smoothed) * np.log(1 - p)).mean(1)
        expected = (each * (shares @ weight)).mean()
    else:
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        expected = -((shares * 0.9 + 0.1 / 3) * weight * log_p).sum() / (shares @ weight).sum()
    assert function(logits, soft).item() == pytest.approx(expected, rel=1e-5)
