"""Batches and augmentation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from alexnet.data.augment import DRAWS, training_input
from alexnet.data.batches import SplitImages, batch_bounds, epoch_batches, shard_bounds
from alexnet.data.pixels import Pixels
from alexnet.recipe import Augment, Preprocessing

# Images pass through unchanged, so that only random choices show.
PLAIN = Preprocessing(cache_size=2, input=2, fit="crop", reduced_decode=False, resize="bilinear", value_range=255)


def changed(images: torch.Tensor, draws: torch.Tensor, **changes: object) -> torch.Tensor:
    """Return N S S 3 floats, the grey levels of randomly augmented images."""
    preprocessing = PLAIN.model_copy(update={"cache_size": images.shape[1], "input": changes.pop("input", images.shape[1])})
    preprocessing = preprocessing.model_copy(update={"crop": changes.pop("size", None)})
    x = training_input(images, draws, preprocessing, Augment(**{"horizontal_flip": False, **changes}))
    return x.permute(0, 2, 3, 1)


def made_images(count: int) -> SplitImages:
    values = np.zeros((count, 2, 2, 3), np.uint8)
    values[:, 0, 0, 0], values[:, 0, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    pixels = Pixels(values.ravel(), np.full((count, 2), 2), PLAIN)
    return SplitImages(pixels, np.arange(count), np.arange(count))


@given(st.integers(1, 700), st.integers(1, 130), st.integers(0, 3), st.integers(1, 4))
@settings(max_examples=40)
def test_epoch_batches_hold_every_image_once(count: int, size: int, epoch: int, workers: int) -> None:
    result = list(epoch_batches(made_images(count), batch_bounds(count, size), seed=1, epoch=epoch, workers=workers))
    assert sorted(torch.cat([b.targets for b in result]).tolist()) == list(range(count))
    sizes = [len(b.targets) for b in result]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    for batch in result:
        assert (batch.images[:, 0, 0, 0].long() + 256 * batch.images[:, 0, 0, 1].long()).tolist() == batch.targets.tolist()


@given(st.integers(2, 300), st.integers(1, 50), st.integers(0, 20))
@settings(max_examples=30)
def test_batches_do_not_depend_on_workers_and_start(count: int, size: int, start: int) -> None:
    images = made_images(count)
    whole = list(epoch_batches(images, batch_bounds(count, size), seed=3, epoch=2, workers=1))
    later = list(epoch_batches(images, batch_bounds(count, size), seed=3, epoch=2, start=start, workers=4))
    assert len(later) == max(0, len(whole) - start)
    for a, b in zip(whole[start:], later, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
        assert a.draws is not None
        assert b.draws is not None
        assert torch.equal(a.draws, b.draws)


@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 9), st.integers(0, 8), st.integers(1, 3), st.data())
@settings(max_examples=40)
def test_processes_split_the_epoch_from_any_start(
    count: int, size: int, world: int, start: int, workers: int, data: st.DataObject
) -> None:
    images, cuts = made_images(count), batch_bounds(count, size, data.draw(st.sampled_from(["even", "short"])))
    whole = list(epoch_batches(images, cuts, seed=3, epoch=1))[start:]
    ranks = [list(epoch_batches(images, shard_bounds(cuts, rank, world), 3, 1, start, workers)) for rank in range(world)]
    for batch, *pieces in zip(whole, *ranks, strict=True):
        assert torch.equal(torch.cat([piece.targets for piece in pieces]), batch.targets)
        assert torch.equal(torch.cat([piece.images for piece in pieces]), batch.images)
        sizes = [len(piece.targets) for piece in pieces]
        assert max(sizes) - min(sizes) <= 1


def test_an_image_is_as_likely_at_any_place_and_next_to_any_other() -> None:
    count, epochs = 12, 6000
    images = made_images(count)
    places, neighbours = np.zeros((2, count, count))
    for epoch in range(epochs):
        (batch,) = epoch_batches(images, [(0, count)], seed=5, epoch=epoch)
        order = batch.targets.numpy()
        places[order, np.arange(count)] += 1
        neighbours[order[:-1], order[1:]] += 1
    # Rows and columns of `places` are epochs each, those of `neighbours` nearly.
    expected = epochs / count
    assert chi2.sf(((places - expected) ** 2 / expected).sum(), (count - 1) ** 2) > 1e-4
    off = ~np.eye(count, dtype=bool)
    expected = epochs * (count - 1) / (count * (count - 1))
    assert chi2.sf(((neighbours[off] - expected) ** 2 / expected).sum(), off.sum() - 1) > 1e-4


def test_batches_differ_by_epoch_and_seed() -> None:
    images = made_images(100)
    pairs = [(seed, epoch) for seed in (0, 1) for epoch in (1, 2)]
    orders = {tuple(next(epoch_batches(images, [(0, 100)], *pair)).targets.tolist()) for pair in pairs}
    assert len(orders) == 4


def test_batch_bounds_are_fewest_and_even() -> None:
    assert batch_bounds(10, 4) == [(0, 3), (3, 6), (6, 10)]
    assert batch_bounds(8, 4) == [(0, 4), (4, 8)]
    assert batch_bounds(0, 4) == []


# Augmentation


def test_shift_equals_a_shift_of_the_image_or_its_mirror() -> None:
    images = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8)
    draws = torch.rand(40, len(DRAWS))
    result = changed(images, draws, shift=0.125, horizontal_flip=True)
    mirrored = 0
    for image, after, draw in zip(images.numpy(), result.numpy(), draws, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        crops = {(y, x): padded[y : y + 16, x : x + 16] for y in range(5) for x in range(5)}
        mirror = bool(draw[2] < 0.5)
        mirrored += mirror
        plain = after[:, ::-1] if mirror else after
        matches = [at for at, crop in crops.items() if np.array_equal(crop, plain)]
        assert len(matches) == 1, (mirror, draw)
        assert matches[0][0] == min(4, int(draw[0] * 5))
    assert 8 < mirrored < 32


def test_no_augmentation_keeps_images() -> None:
    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(changed(images, torch.rand(4, len(DRAWS))), images.float())
    flipped = changed(images, torch.zeros(4, len(DRAWS)), horizontal_flip=True)
    assert torch.equal(flipped, images.float().flip(2))


def test_shifts_are_uniform() -> None:
    row = torch.arange(32, dtype=torch.uint8).view(1, 1, 32, 1).expand(4000, 32, 32, 3)
    result = changed(row, torch.rand(4000, len(DRAWS), generator=torch.Generator().manual_seed(0)), shift=0.125)
    counts = Counter(result[:, 0, 16, 0].tolist())
    assert set(counts) == set(range(12, 21))
    assert max(counts.values()) < 1.3 * min(counts.values())
