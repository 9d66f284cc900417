"""Input size, augmentation and dropout of a training by the clock follow the measured pace, the same in all its processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import alexnet
from alexnet.data.dataset import resolve
from alexnet.network.alexnet import AlexNet
from alexnet.network.layers import Dropout
from alexnet.network.variants import check_effect
from alexnet.recipe import load
from alexnet.run import RunFolder, read_recipe
from alexnet.training import pace
from alexnet.training.distributed import ProcessGroup
from alexnet.training.pace import images_per_second, resolve_by_pace
from conftest import photos_of

CPU = torch.device("cpu")


class Main(ProcessGroup):
    """The main one of several processes, without the others."""

    def broadcast(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize(
    ("rate", "processes", "side"),
    [(10.0, 1, 128), (11.0, 1, 128), (12.0, 1, 227), (1000.0, 1, 227), (5.0, 2, 128), (6.0, 2, 227), (0.0, 1, 128)],
)
def test_the_measured_pace_decides(rate: float, processes: int, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "images_per_second", lambda *_: rate)
    recipe = load("fast").with_settings({"train.minutes": 15.0})
    resolved = resolve_by_pace(recipe, photos_of(200), CPU, Main(world_size=processes))
    assert resolved.images.input == side  # 700 images for 15 epochs in 900 s


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"train.minutes": 15.0}, True),  # 32 images a second, so 41 epochs
        ({"train.minutes": 14.0}, False),  # 38 epochs
        ({"train.minutes": 15.0, "images.input": 227}, True),
        ({"train.minutes": 15.0, "images.input": 128}, False),
        ({"train.minutes": 15.0, "augment.horizontal_flip": False}, False),  # their orientation matters
        ({"train.minutes": 14.0, "augment.trivial": True}, True),
        ({"train.minutes": 15.0, "augment.trivial": False}, False),
        ({}, False),
        ({"train.epochs": 40}, True),
        ({"train.epochs": 40, "train.max_images": 39 * 700}, False),
        ({"train.epochs": 200, "train.max_images": 0}, True),
    ],
)
def test_many_epochs_of_photos_are_augmented(settings: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "images_per_second", lambda *_: 32.0)
    table = photos_of(240)
    recipe = resolve_by_pace(load("fast").with_settings(settings), table, CPU)
    assert resolve(recipe, table).augment.trivial is expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"train.minutes": 15.0}, 0.5),  # as in the variant; 120 images a second, so 154 epochs
        ({"train.minutes": 14.0}, 0.0),  # 144 epochs
        ({"train.minutes": 15.0, "augment.horizontal_flip": False}, 0.5),
        ({"train.minutes": 15.0, "augment.trivial": False}, 0.5),
        ({"train.minutes": 15.0, "images.input": 128}, 0.0),
        ({"train.minutes": 14.0, "model.dropout": 0.3}, 0.3),
        ({"train.minutes": 15.0, "model.dropout": 0.0}, 0.0),
        ({}, 0.0),
        ({"train.epochs": 150, "train.max_images": 0}, 0.5),
    ],
)
def test_many_epochs_of_photos_have_dropout(settings: dict[str, Any], expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "images_per_second", lambda *_: 120.0)
    table = photos_of(240)
    recipe = resolve_by_pace(load("fast").with_settings(settings), table, CPU)
    assert resolve(recipe, table).model.dropout == expected


def test_small_images_are_left_alone() -> None:
    resolved = resolve(load("fast").with_settings({"train.epochs": 200}), photos_of(32))
    assert (resolved.augment.trivial, resolved.model.dropout) == (False, 0.0)


def test_many_epochs_suit_a_variant_without_dropout() -> None:
    settings = {"model.variant": "four-layer", "train.epochs": 150, "train.max_images": 0}
    model = resolve(load("fast").with_settings(settings), photos_of(240)).model
    check_effect(model.variant, model.overrides)


@pytest.mark.parametrize(
    ("side", "settings"),
    [
        (200, {}),  # the same size on every machine
        (200, {"train.minutes": 15.0, "images.input": 160}),
        (120, {"train.minutes": 15.0}),  # no more to be seen
    ],
)
def test_nothing_is_measured_where_it_does_not_matter(
    side: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(pace, "images_per_second", refuse)
    recipe, table = load("fast").with_settings(settings), photos_of(side)
    resolved = resolve_by_pace(recipe, table, CPU)
    assert resolve(resolved, table).images.input_side == resolve(recipe, table).images.input_side


def test_measuring_leaves_the_generators_alone() -> None:
    recipe = load("fast").with_settings({"model.width": 1 / 32})
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert 0 < images_per_second(recipe, 2, CPU) < 1e6
    assert torch.equal(torch.rand(4), expected)


def test_too_little_memory_is_no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("made")

    monkeypatch.setattr(AlexNet, "forward", forward)
    assert images_per_second(load("fast").with_settings({"model.width": 1 / 32}), 2, CPU) == 0.0


@pytest.mark.parametrize(("rate", "side"), [(0.0, 128), (1e6, 227)])
def test_the_run_keeps_what_was_chosen(rate: float, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for i in range(24):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (150, 150, 3), np.uint8)).save(folder / f"{i}.png")
    monkeypatch.setattr(pace, "images_per_second", lambda *_: rate)
    settings = {"model.width": 1 / 32, "train.minutes": 0.05}
    run = alexnet.train(tmp_path / "photos", out=tmp_path / "run", settings=settings)
    kept = read_recipe(RunFolder(run.path))
    assert (kept.images.input, kept.augment.trivial) == (side, side == 227)
    assert [layer.p for layer in run.network.modules() if isinstance(layer, Dropout)] == [0.5 if side == 227 else 0.0] * 2
