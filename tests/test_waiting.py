"""A training step reads nothing from the device, so that neither waits for the other.

Tensors on PyTorch's device `meta` have no values: reading one raises an error.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet.data import resident
from alexnet.data.augment import DRAWS
from alexnet.data.sources import open_table
from alexnet.network.device import to_device
from alexnet.recipe import Recipe, load, names
from alexnet.training.checkpoint import TrainingState
from alexnet.training.readings import Readings
from alexnet.training.step import Step
from alexnet.training.train import load_data_and_network
from conftest import NARROW, mostly_long

META = torch.device("meta")
AUGMENTED = {
    "augment.trivial": True,
    "augment.brightness": 0.3,
    "augment.contrast": 0.3,
    "augment.saturation": 0.3,
    "augment.rotation": 20.0,
    "augment.area": [0.3, 1.0],
    "augment.colour_noise": 0.1,
    "augment.erasing": 0.5,
    "augment.mixup": 0.3,
    "augment.cutmix": 1.0,
    "train.class_weights": "balanced",
}


def step_on(device: torch.device, recipe: Recipe, photos: Path) -> Step:
    """Return the step of a recipe, with its network on `device`."""
    recipe = recipe.with_settings({"data.dataset": str(photos), "model.width": 1 / 16, "train.batch_size": 14})
    table = open_table(recipe.data.dataset, settings=recipe.data)
    recipe, dataset, preprocessing, network = load_data_and_network(recipe, table, torch.device("cpu"))
    return Step(recipe, preprocessing, dataset.images("train"), to_device(network, device))


def take_two_steps(step: Step) -> Readings:
    state, readings = TrainingState(), Readings(step.model)
    for batch in islice(step.batches(state), 2):
        assert batch.draws is not None
        assert batch.draws.shape[1] == len(DRAWS)
        step.set_lr(0.01, state.epoch)
        numbers = step.forward_backward(batch, step.augmentation(1), state, 0.5)
        step.update()
        state.batch += 1
        readings.add(len(batch.targets), *numbers)
    return readings


@mostly_long("name", [name for name in names() if not load(name).model.weights], "fast", "annotated", "paper")
def test_no_step_reads_from_the_device(name: str, photos: Path) -> None:
    readings = take_two_steps(step_on(META, load(name), photos))
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        readings.read()


@pytest.mark.parametrize("free", [0, 1 << 40], ids=["cached", "resident"])
@pytest.mark.parametrize("changes", [AUGMENTED, {"train.loss": "binary", "augment.mixup": 0.3}])
def test_no_augmentation_reads_from_the_device(
    changes: dict[str, Any], free: int, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "free_memory", lambda device: free)
    step = step_on(META, load("fast").with_settings({**NARROW, **changes}), photos)
    assert isinstance(step.images, resident.ResidentImages) == bool(free)
    take_two_steps(step)


def test_readings_are_those_of_each_step(photos: Path) -> None:
    step = step_on(torch.device("cpu"), load("fast").with_settings(NARROW), photos)
    readings = take_two_steps(step)
    first, second = readings.read()
    assert first.images == second.images == 14
    assert first.loss != second.loss
    assert 0 <= first.correct <= 14
    assert readings.read() == []
