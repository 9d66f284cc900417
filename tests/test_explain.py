"""Explanations: they highlight the decisive region, depend on the weights, and continue after an unreadable image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import alexnet
from alexnet.cli import app
from alexnet.explain.attribution import Explanation, grad_cam, integrated_gradients, map_layers, occlusion
from alexnet.network.alexnet import AlexNet
from alexnet.network.variants import VARIANTS
from commands import error, run
from conftest import TINY, assert_near

Method = Callable[[AlexNet, torch.Tensor, int, int], np.ndarray]
METHODS: dict[str, Method] = {"grad_cam": grad_cam, "occlusion": occlusion, "integrated_gradients": integrated_gradients}
SIDE = 224
SQUARES = {0: (slice(20, 68), slice(18, 66)), 1: (slice(158, 206), slice(156, 204))}  # of red, of green: rows, columns


def colour_network(red: int = 0) -> AlexNet:
    """Return a network that passes colours through: logit `red` is the red in the image, the other logit the green."""
    network = AlexNet("owt", 2, width=1 / 16).eval()
    with torch.no_grad():
        for layer in network.layers.values():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.zero_()
                layer.bias.zero_()
        for i in range(2):
            network.features.conv1.weight[i, i] = 1 / 121
            for name in ("conv2", "conv3", "conv4", "conv5"):
                weight = network.features.get_submodule(name).weight
                weight[i, i, weight.shape[2] // 2, weight.shape[3] // 2] = 1
            network.features.fc6.weight.view(256, 16, 36)[i, i] = 1
            network.features.fc7.weight[i, i] = 1
            network.head.weight[i ^ red, i] = 1
    return network


def squares() -> torch.Tensor:
    """Return a grey image with a red square and a half as bright green one: 1 3 224 224."""
    images = torch.zeros(1, 3, SIDE, SIDE)
    for i, (rows, columns) in SQUARES.items():
        images[0, i, rows, columns] = 1 - i / 2
    return images


def share_near(heat: np.ndarray, square: tuple[slice, slice], reach: int) -> float:
    """Return the share of the evidence for the label that lies at most `reach` pixels from a square."""
    rows, columns = (slice(max(0, side.start - reach), side.stop + reach) for side in square)
    positive = heat.clip(0)
    return float(positive[rows, columns].sum() / positive.sum())


# Pixels outside a square that may be hot: positions of the last maps are 17 pixels apart, see at least 27 pixels, and are
# interpolated; a patch that covers part of the square is 37 wide. The squares are further apart than that.
REACH = {"grad_cam": 44, "occlusion": 36, "integrated_gradients": 0}


@pytest.mark.parametrize("method", METHODS)
def test_all_heat_is_on_the_decisive_region(method: str) -> None:
    for target in (0, 1):
        heat = METHODS[method](colour_network(), squares(), target, 1)
        assert share_near(heat, SQUARES[target], REACH[method]) == pytest.approx(1, abs=1e-3)
        assert heat[SQUARES[target]].max() > 0.99 * heat.max() > 0


@pytest.mark.parametrize("method", METHODS)
def test_explanations_change_with_the_weights(method: str) -> None:
    """Sanity checks for saliency maps (Adebayo and others 2018): a map that ignores the weights explains nothing."""
    for red in (0, 1):
        heat = METHODS[method](colour_network(red), squares(), 0, 1)
        assert share_near(heat, SQUARES[red], REACH[method]) == pytest.approx(1, abs=1e-3)


def test_grad_cam_is_captums_of_the_log_odds() -> None:
    torch.manual_seed(0)
    network = AlexNet("cifar10", 3, width=1 / 16).eval()
    x = torch.randn(1, 3, 227, 227)
    method = LayerGradCam(lambda images: network(images).softmax(1).logit()[:, 1], network.features.relu5)
    heat = method.attribute(x, relu_attributions=True)
    wanted = LayerAttribution.interpolate(heat, x.shape[2:], "bilinear")[0, 0].detach().numpy()
    assert wanted.max() > 0
    assert_near(grad_cam(network, x, 1) / wanted.max(), wanted / wanted.max())


@pytest.mark.parametrize("layer", ["conv1", "relu3", "pool5"])
def test_grad_cam_at_a_layer_is_captums(layer: str) -> None:
    torch.manual_seed(0)
    network = AlexNet("cifar10", 3, width=1 / 16).eval()
    x = torch.randn(1, 3, 227, 227)
    method = LayerGradCam(lambda images: network(images).softmax(1).logit()[:, 2], network.layers[layer])
    heat = method.attribute(x, relu_attributions=True)
    wanted = LayerAttribution.interpolate(heat, x.shape[2:], "bilinear")[0, 0].detach().numpy()
    assert wanted.max() > 0
    assert_near(grad_cam(network, x, 2, 1, layer) / wanted.max(), wanted / wanted.max())


def test_a_label_and_a_layer_may_be_asked_for(trained: alexnet.Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    [(_, first)] = trained.explanations([pixels])
    assert isinstance(first, Explanation)
    assert first.layer == "relu5"
    other = next(label for i, label in enumerate(trained.labels) if i != first.target)
    [(_, asked)] = trained.explanations([pixels], other, "relu3")
    assert isinstance(asked, Explanation)
    assert (trained.labels[asked.target], asked.layer) == (other, "relu3")
    np.testing.assert_array_equal(asked.probabilities, first.probabilities)
    [(_, default)] = trained.explanations([pixels], trained.labels[first.target], "relu5")
    assert isinstance(default, Explanation)
    np.testing.assert_array_equal(default.grad_cam, first.grad_cam)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    text = run("explain", trained.path, tmp_path / "a.png", "--out", tmp_path, "--label", other, "--layer", "relu3").stdout
    assert "a-explained.png" in text
    assert "no label 'x'" in error("explain", trained.path, tmp_path / "a.png", "--label", "x")
    assert "has no maps" in error("explain", trained.path, tmp_path / "a.png", "--layer", "fc7")
    assert "no layer 'relu9'" in error("explain", trained.path, tmp_path / "a.png", "--layer", "relu9")


def test_integrated_gradients_add_up_to_the_logit() -> None:
    torch.manual_seed(0)
    network = AlexNet("cifar10", 2, width=1 / 16).eval()
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        rise = float((network(x) - network(torch.zeros_like(x)))[0, 1])
    found = float(integrated_gradients(network, x, 1).sum())
    assert found == pytest.approx(rise, rel=0.01)


def test_occlusion_of_nothing_but_grey_changes_nothing() -> None:
    assert not occlusion(colour_network(), torch.zeros(1, 3, SIDE, SIDE), 0).any()


def striped(kind: int, seed: int) -> tuple[Image.Image, tuple[slice, slice]]:
    """Return noise of 64 pixels with a striped square of 16, and its position; the stripes' direction is the class."""
    chance = np.random.default_rng(1000 * kind + seed)
    levels = chance.integers(90, 166, (64, 64, 3))
    top, left = (int(edge) for edge in chance.integers(0, 48, 2))
    square = (slice(top, top + 16), slice(left, left + 16))
    levels[square] = (np.indices((16, 16))[kind] // 4 % 2 * 255)[..., None]
    return Image.fromarray(levels.astype(np.uint8)), square


@pytest.mark.long
def test_decisive_region_gets_more_heat_than_chance_after_training(tmp_path: Path) -> None:
    """The figures in docs/log.md are far from these bounds."""
    for kind, label in enumerate(("across", "down")):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(200):
            striped(kind, i)[0].save(tmp_path / "images" / label / f"{i:03}.png")
    how = {**TINY, "model.width": 1 / 8, "images.input": 227, "images.cache_size": 64, "images.upscale": 1, "train.epochs": 12}
    run = alexnet.train(tmp_path / "images", out=tmp_path / "run", settings=how)
    assert run.summary["test"]["top1"] >= 0.95, "the run must have learned it"
    fresh = [striped(kind, 500 + i) for i in range(10) for kind in (0, 1)]
    found = [explanation for _, explanation in run.explanations([np.asarray(image) for image, _ in fresh])]
    shares: dict[str, list[float]] = {method: [] for method in METHODS}
    for explanation, (_, square) in zip(found, fresh, strict=True):
        assert isinstance(explanation, Explanation)
        large = tuple(slice(round(side.start * 227 / 64), round(side.stop * 227 / 64)) for side in square)
        for method, values in shares.items():
            values.append(share_near(getattr(explanation, method), (large[0], large[1]), 0))
    for method, times in {"grad_cam": 1.5, "occlusion": 3, "integrated_gradients": 3}.items():
        assert np.mean(shares[method]) > times / 16, f"{method}: {np.mean(shares[method]):.2f} of the heat, chance is 1/16"


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
        striped(0, 1)[0].save(folder / part / "$x_1$.png")
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
