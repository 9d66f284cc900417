"""Explanations: they point at what decides, change with the weights, and one bad image does not end them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import alexnet
from alexnet.cli import app
from alexnet.network.alexnet import AlexNet
from alexnet.network.variants import VARIANTS
from alexnet.use.explain import Explanation, grad_cam, integrated_gradients, map_layers, occlusion
from conftest import TINY

SIDE, PATCH = 64, 16
Method = Callable[[AlexNet, torch.Tensor, int, int], np.ndarray]
METHODS: dict[str, Method] = {"grad_cam": grad_cam, "occlusion": occlusion, "integrated_gradients": integrated_gradients}


def planted(kind: int, seed: int) -> tuple[Image.Image, np.ndarray]:
    """Return noise with a striped patch somewhere, whose direction is the class, and the mask of the patch."""
    chance = np.random.default_rng(1000 * kind + seed)
    levels = chance.integers(90, 166, (SIDE, SIDE, 3))
    top, left = chance.integers(0, SIDE - PATCH, 2)
    stripes = np.indices((PATCH, PATCH))[kind] // 4 % 2 * 255
    levels[top : top + PATCH, left : left + PATCH] = stripes[..., None]
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top : top + PATCH, left : left + PATCH] = True
    return Image.fromarray(levels.astype(np.uint8)), mask


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> alexnet.Run:
    """A run that tells patches of stripes across from those of stripes down, whatever is around them."""
    folder = tmp_path_factory.mktemp("patches")
    for kind, label in enumerate(("across", "down")):
        (folder / "images" / label).mkdir(parents=True)
        for i in range(200):
            planted(kind, i)[0].save(folder / "images" / label / f"{i:03}.png")
    settings = {**TINY, "model.width": 1 / 8, "images.input": 128, "images.stored": 64, "images.enlarge": 1, "train.epochs": 12}
    return alexnet.train(folder / "images", out=folder / "run", settings=settings)


@pytest.fixture(scope="module")
def explained(patches: alexnet.Run) -> list[tuple[Explanation, np.ndarray]]:
    """Explanations of twenty new images, with the masks of their patches at the size of the heat maps."""
    fresh = [planted(kind, 500 + i) for i in range(10) for kind in (0, 1)]
    found = [explanation for _, explanation in patches.explanations([np.asarray(image) for image, _ in fresh])]
    assert all(isinstance(each, Explanation) for each in found)
    scale = found[0].grad_cam.shape[0] // SIDE
    return [(each, mask.repeat(scale, 0).repeat(scale, 1)) for each, (_, mask) in zip(found, fresh, strict=True)]


def share_inside(heat: np.ndarray, mask: np.ndarray) -> float:
    """Return how much of what speaks for the label lies in the mask."""
    positive = heat.clip(0)
    return float(positive[mask].sum() / max(positive.sum(), 1e-12))


@pytest.mark.parametrize("method", METHODS)
def test_what_decides_gets_more_of_the_heat_than_chance(
    method: str, patches: alexnet.Run, explained: list[tuple[Explanation, np.ndarray]]
) -> None:
    assert patches.summary["test"]["top1"] >= 0.95, "the run must have learned it"
    shares = [share_inside(getattr(each, method), mask) for each, mask in explained]
    chance = (PATCH / SIDE) ** 2
    assert np.mean(shares) > 1.5 * chance, f"{np.mean(shares):.2f} of the heat, chance is {chance:.2f}"


@pytest.mark.parametrize("method", METHODS)
def test_explanations_change_with_the_weights(method: str, patches: alexnet.Run) -> None:
    """Sanity checks for saliency maps (Adebayo and others 2018): what stays when weights are random explains nothing."""
    images = [np.asarray(planted(i % 2, 900 + i)[0]) for i in range(6)]
    other = alexnet.load(patches.path)
    torch.manual_seed(0)
    for layer in other.network.layers.values():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    likeness = []
    for (_, before), (_, after) in zip(patches.explanations(images), other.explanations(images), strict=True):
        one, two = (getattr(each, method).ravel() for each in (before, after))
        likeness.append(np.corrcoef(one, two)[0, 1] if two.std() and one.std() else 0.0)
    assert np.mean(likeness) < 0.5


def test_integrated_gradients_add_up_to_the_logit(patches: alexnet.Run) -> None:
    network = patches.network
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        rise = float((network(x) - network(torch.zeros_like(x)))[0, 1])
    found = float(integrated_gradients(network, x, 1).sum())
    assert found == pytest.approx(rise, abs=0.1 * abs(rise) + 0.05)


def test_occlusion_of_nothing_but_grey_changes_nothing(patches: alexnet.Run) -> None:
    assert np.abs(occlusion(patches.network, torch.zeros(1, 3, 96, 96), 0)).max() < 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_explained_and_left_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    network = AlexNet(name, 3, width=1 / 16).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    x = torch.randn(1, 3, network.row.input_size, network.row.input_size)
    for method in (grad_cam, integrated_gradients):
        heat = method(network, x, 1)
        assert heat.shape == x.shape[2:]
        assert np.isfinite(heat).all()
    assert len(map_layers(network)) == sum(isinstance(layer, nn.Conv2d) for layer in network.layers.values())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_command_draws_each_image_and_goes_on_after_a_bad_one(trained: alexnet.Run, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for part in ("a", "b"):
        (folder / part).mkdir(parents=True)
        planted(0, 1)[0].save(folder / part / "$x_1$.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["explain", str(trained.path), str(folder), "--out", str(out), "--arrays", "--json"])
    assert result.exit_code == 1, "one could not be read"
    answers = json.loads(result.stdout)
    assert [list(answer) for answer in answers] == [["image", "predictions", "figure", "arrays"]] * 2 + [["image", "error"]]
    assert [Path(answer["figure"]).name for answer in answers[:2]] == ["$x_1$-explained.png", "$x_1$-2-explained.png"]
    assert answers[0]["predictions"] == trained.predict(folder / "a")[0]["predictions"]
    for answer in answers[:2]:
        assert Image.open(answer["figure"]).size == (1210, 946)
        with np.load(answer["arrays"]) as arrays:  # no pickle
            assert {"grad_cam", "occlusion", "integrated_gradients", "conv1", "conv5", "probabilities"} <= set(arrays)
    assert Image.open(out / "filters.png").width > 0
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
    assert not list(out.glob("*.part"))
