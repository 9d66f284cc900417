"""Training images that the device holds: the same batches and trainings, to the byte, as from the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import alexnet
from alexnet.data import resident
from alexnet.data.batches import SplitImages, batch_bounds, epoch_batches
from alexnet.data.pixels import Pixels
from alexnet.data.resident import SHARE, ResidentImages, hold
from alexnet.errors import AlexNetError
from alexnet.files import read_json
from alexnet.recipe import Preprocessing
from conftest import SHORT, metrics, mostly_long, stop_after, weights

CPU = torch.device("cpu")
PLAIN = Preprocessing(cache_size=3, input=3, fit="crop", reduced_decode=False, resize="bilinear", value_range=255)
EACH = 3 * 3 * 3  # bytes


def made_images(count: int) -> SplitImages:
    """Return images of random pixels: every other one of a cache, in another order."""
    rng = np.random.default_rng(count)
    pixels = Pixels(rng.integers(0, 256, 2 * count * EACH, np.uint8), np.full((2 * count, 2), 3), PLAIN)
    return SplitImages(pixels, rng.permutation(count) * 2, rng.integers(0, 9, count))


def with_memory(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(resident, "free_memory", lambda device: free)


@given(st.integers(1, 300), st.integers(1, 50), st.integers(0, 9), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_batches_are_the_same(count: int, size: int, start: int, mixed: bool, alternate: bool) -> None:
    images, bounds, options = made_images(count), batch_bounds(count, size), {"mixed": mixed, "alternate": alternate}
    with pytest.MonkeyPatch.context() as patch:
        with_memory(patch, 1 << 40)
        patch.setattr(resident, "CHUNK", 10 * EACH)
        held = hold(images, CPU)
    assert isinstance(held, ResidentImages)
    cached = list(epoch_batches(images, bounds, 1, 2, start, **options))
    gathered = map(held.gather, epoch_batches(held, bounds, 1, 2, start, workers=3, **options))
    for one, other in zip(cached, gathered, strict=True):
        assert one.draws is not None
        assert other.draws is not None
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.draws, other.draws)


def test_images_are_held_only_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    images = made_images(20)
    assert hold(images, CPU) is images  # a CPU has no memory of its own
    with_memory(monkeypatch, 20 * EACH / SHARE)
    assert isinstance(hold(images, CPU), ResidentImages)
    with_memory(monkeypatch, 20 * EACH / SHARE - 1)
    assert hold(images, CPU) is images
    with_memory(monkeypatch, 1 << 40)
    full = SplitImages(
        Pixels(images.pixels.memory, images.pixels.shapes, PLAIN.model_copy(update={"cache_size": "full"})), *[images.rows] * 2
    )
    assert hold(full, CPU) is full


@mostly_long("steps", [1, 6], 6)
def test_resume_with_held_images_is_bit_identical(
    short: Path, photos: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped with images in the cache, resumed with held ones, and the other way round: the losses and the weights agree."""
    run = tmp_path / "run"
    for first, then, place in ((0, 1 << 40, "device"), (1 << 40, 0, "cache")):
        with monkeypatch.context() as patch:
            with_memory(patch, first)
            stop_after(patch, "train_step", steps)
            with pytest.raises(AlexNetError, match="resume with"):
                alexnet.train(photos, out=run / place, settings=SHORT)
        with_memory(monkeypatch, then)
        alexnet.resume(run / place)
        assert read_json(run / place / "environment.json")["training_images"] == place
        assert metrics(run / place) == metrics(short)
        assert weights(run / place) == weights(short)
