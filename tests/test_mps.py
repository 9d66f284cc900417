"""Apple's MPS, which is pretended (pretended.py): nothing is asked of it that it cannot do or does wrong.

The tests of test_device.py on it, then whole trainings and what runs are used for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.nn import functional

import alexnet
from alexnet.network.device import release_memory
from alexnet.recipe import load, names
from conftest import NARROW, SHORT, assert_near, mostly_long
from pretended import MPS, OnDevice, pretended
from test_device import *  # noqa: F403 - with the fixture below
from test_waiting import AUGMENTED, step_on, take_two_steps


@pytest.fixture
def device() -> Iterator[torch.device]:
    with pretended() as device:
        yield device


@pytest.fixture
def mps(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Return the device, to which files of weights can be loaded."""
    read = safetensors.torch.load_file
    monkeypatch.setattr(
        safetensors.torch, "load_file", lambda path, device="cpu": {name: x.to(device) for name, x in read(path).items()}
    )
    return device


REFUSED = {
    "float64": lambda x: x.double(),
    "no kernel": lambda x: torch.special.ndtri(x),
    "two devices": lambda x: x + torch.ones(4, 3, 8, 8),
    "does not wait": lambda x: torch.ones(4, 3, 8, 8).to(x.device, non_blocking=True),
    "into it": lambda x: x.copy_(torch.ones(4, 3, 8, 8), non_blocking=True),
    "channels last": lambda x: functional.max_pool2d(x.contiguous(memory_format=torch.channels_last), 2),
    "a view": lambda x: functional.conv2d(
        x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), torch.ones(2, 3, 3, 3, device=x.device)
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_mps_cannot_do_is_refused(name: str, device: torch.device) -> None:
    x = torch.ones(4, 3, 8, 8, device=device)
    with pytest.raises((TypeError, NotImplementedError, AssertionError)):
        REFUSED[name](x)
    assert isinstance(x + 1, OnDevice)
    assert (x + 1).sum().item() == 2 * x.numel()


@mostly_long("name", [name for name in names() if not load(name).model.weights], "fast", "code2012", "annotated", "four-layer")
def test_steps_of_every_recipe_equal_cpu(name: str, photos: Path, device: torch.device) -> None:
    compare_steps(load(name).with_settings({"model.dropout": 0.0}), photos, device)


@pytest.mark.parametrize("changes", [AUGMENTED, {"train.loss": "binary", "augment.mixup": 0.3}])
def test_augmented_steps_equal_cpu(changes: dict[str, Any], photos: Path, device: torch.device) -> None:
    compare_steps(load("fast").with_settings({**NARROW, **changes}), photos, device)


def compare_steps(recipe: Any, photos: Path, device: torch.device) -> None:
    recipe = recipe.with_settings({"train.precision": "float32"})
    ours, theirs = (take_two_steps(step_on(where, recipe, photos)).read() for where in (device, torch.device("cpu")))
    assert_near([reading.loss for reading in ours], [reading.loss for reading in theirs], 1e-3)


def test_a_run_is_used(photos: Path, tmp_path: Path, mps: torch.device) -> None:
    """Train on the device, use the network there, and compare with the CPU."""
    run = alexnet.train(photos, out=tmp_path / "run", device=str(mps), settings={**SHORT, "train.average": 0.5})
    there = alexnet.load(tmp_path / "run", device="cpu")
    assert run.network.head.weight.device == MPS
    for ours, theirs in zip(run.predict(photos, views=10), there.predict(photos, views=10), strict=True):
        assert_near(
            [each["probability"] for each in ours["predictions"]], [each["probability"] for each in theirs["predictions"]], 1e-3
        )
        assert ours["known"] == theirs["known"]
    assert_near(run.evaluate(photos).logits, there.evaluate(photos).logits, 1e-3)
    assert run.index(photos)["images"] == there.index(photos, tmp_path / "index")["images"]
    layers = ["conv1", "norm2", "fc7"]
    for name, values in run.features(photos, layers).items():
        assert_near(values, there.features(photos, [name])[name], 1e-3)
    image = next(photos.rglob("*.png"))
    ours, theirs = (next(each.explanations([image]))[1] for each in (run, there))
    for name, heat in ours.heat_maps.items():
        assert_near(heat, theirs.heat_maps[name], 1e-2)


@mostly_long("recipe", ["head", "finetune"], "head")
def test_trained_weights_are_used(recipe: str, photos: Path, short: Path, tmp_path: Path, mps: torch.device) -> None:
    settings = {name: SHORT[name] for name in ("train.batch_size", "train.epochs")} if recipe == "finetune" else {}
    run = alexnet.train(photos, recipe=recipe, weights=short, out=tmp_path / "run", device=str(mps), settings=settings)
    assert run.network.head.weight.device == MPS


def test_memory_is_released_by_the_devices_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_device_module", lambda: SimpleNamespace(empty_cache=lambda: calls.append("emptied")))
    release_memory()
    assert calls == ["emptied"]
