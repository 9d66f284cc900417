"""Explanations: they highlight the decisive region, depend on the weights, and continue after an unreadable image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum import attr
from captum.attr import LayerAttribution, LayerGradCam
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import alexnet
from alexnet.cli import app
from alexnet.errors import AlexNetError
from alexnet.explain.attribution import Explanation
from alexnet.explain.methods import DEFAULT, GRID, METHODS, check, heat_map, map_layers
from alexnet.network.alexnet import AlexNet
from alexnet.network.layers import BatchNorm, FlattenMaps
from alexnet.network.lrn import LocalResponseNorm
from alexnet.network.variants import VARIANTS
from commands import error, run
from conftest import TINY, assert_near, mostly_long

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


@pytest.mark.parametrize("method", REACH)
def test_all_heat_is_on_the_decisive_region(method: str) -> None:
    for target in (0, 1):
        heat = heat_map(method, colour_network(), squares(), target)
        assert share_near(heat, SQUARES[target], REACH[method]) == pytest.approx(1, abs=1e-3)
        assert heat[SQUARES[target]].max() > 0.99 * heat.max() > 0


@pytest.mark.parametrize("method", REACH)
def test_explanations_change_with_the_weights(method: str) -> None:
    """Sanity checks for saliency maps (Adebayo and others 2018): a map that ignores the weights explains nothing."""
    for red in (0, 1):
        heat = heat_map(method, colour_network(red), squares(), 0)
        assert share_near(heat, SQUARES[red], REACH[method]) == pytest.approx(1, abs=1e-3)


class TowerNorm(nn.Module):
    """PyTorch's response norm, in each tower."""

    def __init__(self, norm: LocalResponseNorm) -> None:
        super().__init__()
        self.towers = norm.towers
        self.norm = nn.LocalResponseNorm(norm.size, norm.alpha * norm.size, norm.beta, norm.k)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.norm(tower) for tower in maps.chunk(self.towers, 1)], 1)


class Half(nn.Module):
    def forward(self, units: torch.Tensor) -> torch.Tensor:
        return units * 0.5


class Flat(nn.Module):
    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return (maps.permute(0, 2, 3, 1) if self.order == "HWC" else maps).flatten(1)


def plain(network: AlexNet) -> nn.Sequential:
    """Return the same network of PyTorch's layers, for inputs of the variant's size."""
    layers = nn.Sequential()
    for name, layer in network.layers.items():
        match layer:
            case nn.Conv2d() | nn.Linear() | nn.MaxPool2d():
                layers.add_module(name, layer)
            case nn.ReLU():
                layers.add_module(name, nn.ReLU())
            case BatchNorm():
                norm = nn.BatchNorm2d(layer.num_features, layer.eps)
                norm.load_state_dict(layer.state_dict())
                layers.add_module(name, norm)
            case LocalResponseNorm():
                layers.add_module(name, TowerNorm(layer))
            case FlattenMaps():
                layers.add_module(name, Flat(layer.order))
            case _:
                assert isinstance(layer, nn.Dropout)
                layers.add_module(name, Half() if network.row.dropout_scales == "testing" else nn.Identity())
    return layers.eval()


def random_network(variant: str, **overrides: Any) -> AlexNet:
    """Return a small network with random weights and statistics, whose logits differ by image."""
    torch.manual_seed(1)
    network = AlexNet(variant, 3, width=1 / 16, **overrides).eval()
    for layer in network.layers.values():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
        if isinstance(layer, nn.BatchNorm2d):
            for value, low in ((layer.weight, -1.0), (layer.bias, -0.5), (layer.running_mean, 0.0), (layer.running_var, 0.5)):
                nn.init.uniform_(value, low, 1.5)
    return network


def expected(name: str, model: nn.Sequential, x: torch.Tensor, target: int) -> torch.Tensor:
    """Return captum's attribution of a label, 1 C I I, by the settings that the documentation names."""
    grey, noise = torch.zeros_like(x), 0.15 * float(x.max() - x.min())
    side = (torch.arange(x.shape[2]) / x.shape[2] * GRID).floor().long()
    blocks: dict[str, Any] = {"baselines": grey, "feature_mask": (side[:, None] * GRID + side)[None, None]}
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - captum draws from it

    def log_odds(images: torch.Tensor) -> torch.Tensor:
        return model(images).double().softmax(1).logit()

    match name:
        case "saliency":
            return attr.Saliency(model).attribute(x, target=target).amax(1)
        case "smooth_grad":
            options: dict[str, Any] = {"nt_samples": 32, "stdevs": noise, "target": target}
            return attr.NoiseTunnel(attr.Saliency(model)).attribute(x, "smoothgrad", **options).amax(1)
        case "input_x_gradient":
            return attr.InputXGradient(model).attribute(x, target=target).sum(1)
        case "integrated_gradients":
            return attr.IntegratedGradients(model).attribute(x, grey, target, n_steps=32).sum(1)
        case "guided_backprop":
            return attr.GuidedBackprop(model).attribute(x, target=target).sum(1)
        case "deconvolution":
            return attr.Deconvolution(model).attribute(x, target=target).sum(1)
        case "guided_grad_cam":
            method = attr.GuidedGradCam(model, model.relu5)
            return method.attribute(x, target=target, interpolate_mode="bilinear").sum(1)
        case "gradient_shap":
            return attr.GradientShap(model).attribute(x, grey, n_samples=32, stdevs=noise, target=target).sum(1)
        case "deep_lift":
            return attr.DeepLift(model).attribute(x, grey, target=target).sum(1)
        case "feature_ablation":
            return attr.FeatureAblation(log_odds).attribute(x, target=target, **blocks)[:, 0]
        case "kernel_shap":
            return attr.KernelShap(log_odds).attribute(x, target=target, n_samples=512, **blocks)[:, 0]
    raise AssertionError(name)


NEW = [name for name in METHODS if name not in ("grad_cam", "occlusion", "deep_lift", "kernel_shap")]
PAIRS = [(name, variant) for name in NEW for variant in ("cifar10", "paper", "owt")]
PAIRS += [("deep_lift", "cifar10"), ("kernel_shap", "cifar10")]
QUICK = [(name, variant) for name, variant in PAIRS if variant == "cifar10" and name != "kernel_shap"]


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
@mostly_long(("name", "variant"), PAIRS, *QUICK)
def test_a_map_is_captums_on_a_plain_pytorch_network(name: str, variant: str) -> None:
    network = random_network(variant, **({"pool": (2, 2)} if name == "deep_lift" else {}))
    x = torch.randn(1, 3, network.row.input_size, network.row.input_size)
    x[:, :, 60:140, 40:150] *= 3
    [wanted] = expected(name, plain(network), x.clone(), 1).detach().numpy()
    found = heat_map(name, network, x, 1)
    assert np.ptp(wanted) > 0
    assert_near(found / np.abs(wanted).max(), wanted / np.abs(wanted).max(), 1e-3)
    assert not any(getattr(layer, hook) for layer in network.modules() for hook in ("_forward_hooks", "_backward_hooks"))


def test_deep_lift_adds_up_to_the_rise_from_grey() -> None:
    network, x = random_network("cifar10", pool=(2, 2)), torch.randn(1, 3, 227, 227)
    with torch.no_grad():
        rise = float((network(x) - network(torch.zeros_like(x)))[0, 2])
    assert heat_map("deep_lift", network, x, 2).sum() == pytest.approx(rise, rel=1e-3)


@pytest.mark.parametrize("name", ["smooth_grad", "gradient_shap", "kernel_shap"])
def test_random_methods_answer_the_same_and_leave_the_generators_alone(name: str) -> None:
    network, x = random_network("cifar10"), torch.randn(1, 3, 128, 128)
    maps, states = [], []
    for seed in (5, 6):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        maps.append(heat_map(name, network, x, 0))
        states.append((torch.rand(1).item(), np.random.rand()))  # noqa: NPY002
    torch.manual_seed(6)
    np.random.seed(6)  # noqa: NPY002
    np.testing.assert_array_equal(*maps)
    assert states[1] == (torch.rand(1).item(), np.random.rand())  # noqa: NPY002


def test_methods_that_cannot_be_right_are_refused(trained: alexnet.Run) -> None:
    for variant, overrides in (("owt", {}), ("paper", {"pool": (2, 2)}), ("code2012", {"pool": (2, 2)})):
        with pytest.raises(AlexNetError, match="'deep_lift' cannot follow response norms, or pooling windows that overlap"):
            check("deep_lift", AlexNet(variant, 2, width=1 / 16, **overrides))
    for name in ("guided_backprop", "deconvolution", "guided_grad_cam"):
        with pytest.raises(AlexNetError, match="needs ReLUs"):
            check(["saliency", name], AlexNet("owt", 2, width=1 / 16, activation="tanh"))
    with pytest.raises(AlexNetError, match="no method 'gradcam': did you mean 'grad_cam'"):
        trained.explanations([np.zeros((40, 40, 3), np.uint8)], method="gradcam")
    with pytest.raises(AlexNetError, match="no method: name one or more of grad_cam, "):
        trained.explanations([np.zeros((40, 40, 3), np.uint8)], method=[])


@pytest.mark.long
def test_every_method_by_name(trained: alexnet.Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    names = [name for name in METHODS if name != "deep_lift"]
    [(_, found)] = trained.explanations([pixels], method=names)
    assert isinstance(found, Explanation)
    assert list(found.heat_maps) == names
    given = ("explain", trained.path, tmp_path / "a.png", "--out", tmp_path, "--method", ",".join(names), "--arrays", "--json")
    [answer] = json.loads(run(*given).stdout)
    with np.load(answer["arrays"]) as arrays:
        for name in names:
            np.testing.assert_array_equal(arrays[name], found.heat_maps[name])
    with Image.open(answer["figure"]) as image:
        assert image.width == 1210
        assert image.height == pytest.approx(946 + 3 * 305, abs=3)  # three more rows of panels
    help_text = " ".join(run("explain", "--help").stdout.split())
    assert all(name in help_text for name in METHODS)
    assert "no method 'x'" in error("explain", trained.path, tmp_path / "a.png", "--method", "x")


def test_grad_cam_is_captums_of_the_log_odds() -> None:
    torch.manual_seed(0)
    network = AlexNet("cifar10", 3, width=1 / 16).eval()
    x = torch.randn(1, 3, 227, 227)
    method = LayerGradCam(lambda images: network(images).softmax(1).logit()[:, 1], network.features.relu5)
    heat = method.attribute(x, relu_attributions=True)
    wanted = LayerAttribution.interpolate(heat, x.shape[2:], "bilinear")[0, 0].detach().numpy()
    assert wanted.max() > 0
    assert_near(heat_map("grad_cam", network, x, 1) / wanted.max(), wanted / wanted.max())


@pytest.mark.parametrize("layer", ["conv1", "relu3", "pool5"])
def test_grad_cam_at_a_layer_is_captums(layer: str) -> None:
    torch.manual_seed(0)
    network = AlexNet("cifar10", 3, width=1 / 16).eval()
    x = torch.randn(1, 3, 227, 227)
    method = LayerGradCam(lambda images: network(images).softmax(1).logit()[:, 2], network.layers[layer])
    heat = method.attribute(x, relu_attributions=True)
    wanted = LayerAttribution.interpolate(heat, x.shape[2:], "bilinear")[0, 0].detach().numpy()
    assert wanted.max() > 0
    assert_near(heat_map("grad_cam", network, x, 2, 1, layer) / wanted.max(), wanted / wanted.max())


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
    np.testing.assert_array_equal(default.heat_maps["grad_cam"], first.heat_maps["grad_cam"])
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
    found = float(heat_map("integrated_gradients", network, x, 1).sum())
    assert found == pytest.approx(rise, rel=0.01)


def test_occlusion_of_nothing_but_grey_changes_nothing() -> None:
    assert not heat_map("occlusion", colour_network(), torch.zeros(1, 3, SIDE, SIDE), 0).any()


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
    shares: dict[str, list[float]] = {method: [] for method in DEFAULT}
    for explanation, (_, square) in zip(found, fresh, strict=True):
        assert isinstance(explanation, Explanation)
        large = tuple(slice(round(side.start * 227 / 64), round(side.stop * 227 / 64)) for side in square)
        for method, values in shares.items():
            values.append(share_near(explanation.heat_maps[method], (large[0], large[1]), 0))
    for method, times in {"grad_cam": 1.5, "occlusion": 3, "integrated_gradients": 3}.items():
        assert np.mean(shares[method]) > times / 16, f"{method}: {np.mean(shares[method]):.2f} of the heat, chance is 1/16"


@mostly_long("name", VARIANTS, "cifar10", "paper", "scratch")
def test_every_variant_is_explained_and_left_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    network = AlexNet(name, 3, width=1 / 16).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    x = torch.randn(1, 3, network.row.input_size, network.row.input_size)
    for method in ("grad_cam", "integrated_gradients"):
        heat = heat_map(method, network, x, 1)
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
