"""Two and ten views of an image, as in 2012, compared with crops cut by hand."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor, nn
from typer.testing import CliRunner

import alexnet
from alexnet.cli import app
from alexnet.data.preprocessing import pixels, to_input
from alexnet.inference.forward import predict_logits
from alexnet.inference.views import views
from alexnet.network import device
from alexnet.recipe import Preprocessing, load
from alexnet.training import train as training
from commands import run as command
from conftest import TINY, make_preprocessing
from test_preprocessing import assert_prepared, cases, prepared


def crops(images: NDArray[Any], preprocessing: Preprocessing, size: int, corners: bool) -> list[NDArray[np.float64]]:
    """Return the network's input for each crop and its mirror image, `size` pixels per side, cut by hand."""
    side = images.shape[1]
    low, high = (side - size) // 2, side - size
    positions = [(0, 0), (0, high), (high, 0), (high, high)] if corners else []
    result = []
    for top, left in [*positions, (low, low)]:
        part = (slice(None), slice(top, top + size), slice(left, left + size))
        cut, mean_image = images[part].astype(np.float64), preprocessing.mean_image
        if preprocessing.mean == "image":
            mean_image = preprocessing.mean_image[part[1:]]
        elif preprocessing.mean == "image-centre":
            mean_image = preprocessing.mean_image[low : low + size, low : low + size]
        elif preprocessing.mean == "each":  # the whole image is standardised before it is cropped
            whole = images.astype(np.float64)
            deviation = np.maximum(whole.std((1, 2, 3), keepdims=True), 1 / np.sqrt(whole[0].size))
            cut = (cut - whole.mean((1, 2, 3), keepdims=True)) / deviation
        changes = {"mean": (0.0,) * 3, "std": (preprocessing.value_range / 255,) * 3} if preprocessing.mean == "each" else {}
        plain = preprocessing.model_copy(update={"crop": None, "mean_image": mean_image, **changes})
        # The mean of a pixel is mirrored with it; the centre of the mean image stays in place, as in training.
        turned = plain.model_copy(update={"mean_image": mean_image[:, ::-1]}) if preprocessing.mean == "image" else plain
        result += [prepared(cut, plain), prepared(cut[:, :, ::-1], turned)]
    return result


@given(cases(), st.sampled_from([2, 10]))
@settings(max_examples=60)
def test_ten_views_are_corners_centre_and_mirrors(case: tuple[NDArray[np.uint8], Preprocessing], count: int) -> None:
    images, preprocessing = case
    preprocessing = preprocessing.model_copy(update={"resize": "bilinear"})
    size = preprocessing.crop or (round(preprocessing.side * 7 / 8) if count == 10 else preprocessing.side)
    result = list(views(torch.from_numpy(images), preprocessing, count))
    assert len(result) == count
    for view, expected in zip(result, crops(images, preprocessing, size, corners=count == 10), strict=True):
        assert_prepared(view, expected, images, preprocessing)


def test_ten_views_of_256_are_crops_of_224() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    for crop in (224, None):  # 224 of 256 is the fraction if the preprocessing does not crop
        result = list(views(torch.from_numpy(image), make_preprocessing(cache_size=256, crop=crop, input=224), 10))
        expected = [image[0, top:, left:][:224, :224] for top, left in ((0, 0), (0, 32), (32, 0), (32, 32), (16, 16))]
        for i, cut in enumerate(expected):
            assert np.array_equal(result[2 * i][0].permute(1, 2, 0).numpy(), cut)
            assert np.array_equal(result[2 * i + 1][0].permute(1, 2, 0).numpy(), cut[:, ::-1])


@given(cases())
@settings(max_examples=20)
def test_one_view_is_the_network_input(case: tuple[NDArray[np.uint8], Preprocessing]) -> None:
    images, preprocessing = case
    (result,) = views(torch.from_numpy(images), preprocessing, 1)
    assert torch.equal(result, to_input(torch.from_numpy(images), preprocessing))
    first, second = views(torch.from_numpy(images), preprocessing, 2)
    if preprocessing.resize == "bilinear" and preprocessing.mean != "image-centre":
        assert_prepared(second, first.flip(3), images, preprocessing)
    assert torch.equal(first, result)


@pytest.mark.parametrize("count", [0, 3, 5])
def test_views_other_than_1_or_10_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"views is {count}, but should be 1, 2 or 10"):
        next(views(torch.zeros(1, 8, 8, 3), make_preprocessing(), count))


def test_evaluate_refuses_other_views_in_one_line(trained: alexnet.Run) -> None:
    with pytest.raises(alexnet.AlexNetError, match="views is 3, but should be 1, 2 or 10"):
        trained.evaluate(views=3)


class Sums(nn.Module):
    """Three logits that change with any change of the image."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3 * side * side, generator=torch.Generator().manual_seed(1)) / 300)

    def forward(self, images: Tensor, upscale: int = 1) -> Tensor:
        return images.flatten(1) @ self.weight.T


@pytest.mark.parametrize("count", [2, 10])
def test_views_average_probabilities(count: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    preprocessing, network = make_preprocessing(cache_size=16, crop=12, input=12), Sums(12)
    result = predict_logits(network, torch.from_numpy(images), preprocessing, "float32", count).astype(np.float64)
    weight = network.weight.detach().double().numpy()
    logits = [view.reshape(5, -1) @ weight.T for view in crops(images, preprocessing, 12, corners=count == 10)]
    mean = np.mean([softmax(one, axis=1) for one in logits], axis=0)
    np.testing.assert_allclose(softmax(result, axis=1), mean, atol=1e-5)
    np.testing.assert_allclose(result, np.log(mean), atol=1e-4)
    assert np.abs(softmax(np.mean(logits, axis=0), axis=1) - mean).max() > 0.01, "averaging logits gives another result"


def test_views_loss_of_overconfident_network_is_finite() -> None:
    network = Sums(12)
    with torch.no_grad():
        network.weight.mul_(1e5)
    images = torch.randint(0, 256, (20, 16, 16, 3), dtype=torch.uint8)
    result = predict_logits(network, images, make_preprocessing(cache_size=16, crop=12, input=12), "float32", 10)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(np.exp(result.astype(np.float64)).sum(1), 1, rtol=1e-5)


@pytest.fixture(scope="module")
def cropping(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> alexnet.Run:
    """A narrow network trained on random crops, with the mean image subtracted; mirror images count, too."""
    out = tmp_path_factory.mktemp("cropping") / "run"
    images = {"images.cache_size": 40, "images.crop": 35, "images.mean": "image", "images.views": 2, "augment.crop": True}
    recipe = {**TINY, **images, "data.dataset": str(photos), "train.epochs": 2, "train.precision": "float32"}
    training.start(load("fast").with_settings(recipe), out, "cpu", time.monotonic())
    return alexnet.load(out)


def by_hand(run: alexnet.Run, photos: Path, count: int) -> dict[str, float]:
    """Return loss and top-1 of the mean probabilities over the test images."""
    dataset, split = run.dataset(split="test")
    preprocessing, targets = run.config.preprocessing, dataset.images(split).targets
    stored = np.stack([pixels(photos / name, preprocessing) for name in dataset.names(split)])
    inputs = [prepared(stored, preprocessing)] if count == 1 else crops(stored, preprocessing, 35, corners=count == 10)
    with torch.inference_mode():
        mean = np.mean([softmax(run.network(torch.from_numpy(x).float()).double().numpy(), axis=1) for x in inputs], axis=0)
    return {"loss": float(-np.log(mean[np.arange(len(mean)), targets]).mean()), "top1": (mean.argmax(1) == targets).mean()}


@pytest.mark.parametrize("count", [1, 2, 10])
def test_evaluate_averages_views(cropping: alexnet.Run, photos: Path, count: int) -> None:
    result, expected = cropping.evaluate(views=count).to_json(), by_hand(cropping, photos, count)
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert result["top1"] == expected["top1"]
    if count == 2:  # as trained
        assert result == cropping.evaluate().to_json() == cropping.summary["test"]


def test_predict_averages_the_views_of_the_recipe(cropping: alexnet.Run, photos: Path) -> None:
    dataset, split = cropping.dataset(split="test")
    names, temperature = dataset.names(split), cropping.config.temperature
    for count in (1, 2, None):
        log_mean = cropping.evaluate(views=count or 2).logits
        for row, found in zip(
            softmax(log_mean / temperature, axis=1),
            cropping.predict([photos / name for name in names], views=count),
            strict=True,
        ):
            assert found["predictions"][0]["probability"] == pytest.approx(row.max(), abs=1e-5)


def test_evaluate_command_with_ten_views(cropping: alexnet.Run, photos: Path) -> None:
    result = json.loads(command("evaluate", cropping.path, "--views", 10, "--json").stdout)
    assert list(result) == list(cropping.summary["test"])
    assert result["loss"] == pytest.approx(by_hand(cropping, photos, 10)["loss"], rel=1e-3)
    assert result["loss"] != pytest.approx(cropping.summary["test"]["loss"], rel=1e-5), "two views are something else"
    assert CliRunner().invoke(app, ["evaluate", str(cropping.path), "--views", "3"]).exit_code == 2


def test_ten_views_without_crop_are_seven_eighths(trained: alexnet.Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda _: False)
    preprocessing = trained.config.preprocessing
    assert (preprocessing.cache_size, preprocessing.crop) == (40, None)
    dataset, split = trained.dataset()
    stored = np.stack([pixels(photos / name, preprocessing) for name in dataset.names(split)])
    with torch.inference_mode():
        inputs = [torch.from_numpy(x).float() for x in crops(stored, preprocessing, 35, corners=True)]
        mean = np.mean([softmax(trained.network(x).double().numpy(), axis=1) for x in inputs], axis=0)
    np.testing.assert_allclose(softmax(trained.evaluate(views=10).logits, axis=1), mean, atol=1e-3)
