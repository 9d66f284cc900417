"""How far to believe a heat map: areas and correlations against loops in float64, and maps known to be right or wrong."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

import alexnet
from alexnet.explain.attribution import Explanation
from alexnet.explain.methods import heat_map
from alexnet.explain.scores import STEPS, areas, random_areas, rank_correlation, redrawn, score
from commands import run
from test_explain import SQUARES, colour_network, random_network, squares

SIDE = 40


def linear(weight: np.ndarray) -> Any:
    """Return the probabilities of a linear model of the pixels."""

    def probabilities(images: torch.Tensor) -> np.ndarray:
        return 1 / (1 + np.exp(-(images.double().numpy() * weight).sum((1, 2, 3))))

    return probabilities


def areas_by_loop(weight: np.ndarray, image: np.ndarray, heat: np.ndarray) -> tuple[float, float]:
    """Return both areas, one pixel at a time in float64, for a map without equal pixels."""
    order = sorted(np.ndindex(heat.shape), key=lambda place: -float(heat[place]))
    result = []
    for deletion in (True, False):
        current = image.copy() if deletion else np.zeros_like(image)
        curve = [1 / (1 + np.exp(-(current * weight).sum()))]
        for step in range(STEPS):
            for row, column in order[step * len(order) // STEPS : (step + 1) * len(order) // STEPS]:
                current[:, row, column] = 0 if deletion else image[:, row, column]
            curve.append(1 / (1 + np.exp(-(current * weight).sum())))
        result.append(sum((a + b) / 2 for a, b in pairwise(curve)) / STEPS)
    return result[0], result[1]


def test_areas_are_those_of_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(0)
    for side in (32, SIDE):
        weight, image, heat = rng.normal(0, 0.05, (3, side, side)), rng.normal(0, 1, (3, side, side)), rng.permutation(side**2)
        found = areas(linear(weight), torch.from_numpy(image)[None], heat.reshape(side, side).astype(np.float32))
        np.testing.assert_allclose(found, areas_by_loop(weight, image, heat.reshape(side, side)), rtol=1e-10)


def test_the_true_map_of_a_linear_model_beats_random_order_and_a_reversed_one_loses() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        weight, image = rng.normal(0, 0.05, (3, SIDE, SIDE)), rng.normal(0, 1, (3, SIDE, SIDE))
        x, heat = torch.from_numpy(image)[None], (weight * image).sum(0).astype(np.float32)
        best, chance, worst = areas(linear(weight), x, heat), random_areas(linear(weight), x), areas(linear(weight), x, -heat)
        assert best.deletion < chance.deletion - 0.05 < worst.deletion - 0.1
        assert best.insertion > chance.insertion + 0.05 > worst.insertion + 0.1


def test_a_constant_map_is_a_random_order() -> None:
    weight, x = np.random.default_rng(2).normal(0, 0.05, (3, SIDE, SIDE)), torch.randn(1, 3, SIDE, SIDE)
    assert areas(linear(weight), x, np.full((SIDE, SIDE), 0.3, np.float32)) == random_areas(linear(weight), x)


def test_a_map_of_the_deciding_square_is_believed_and_one_of_the_other_is_not() -> None:
    network, x = colour_network(), squares()
    maps = {}
    for name, square in zip(("grad_cam", "occlusion"), (SQUARES[0], SQUARES[1]), strict=True):
        maps[name] = np.zeros(x.shape[2:], np.float32)
        maps[name][square] = 1
    right, wrong = score(network, redrawn(network), x, 0, 1, "relu5", 1.0, maps).values()
    assert right.deletion < right.random_deletion < wrong.deletion
    assert right.insertion > right.random_insertion > wrong.insertion


def test_rank_correlation_is_spearmans_of_the_sizes() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=(2, 20, 20)).astype(np.float32).round(1)
    wanted = spearmanr(np.abs(one).ravel(), np.abs(other).ravel()).statistic
    assert rank_correlation(one, other) == pytest.approx(wanted, abs=1e-12)
    assert rank_correlation(one, -3 * one) == pytest.approx(1, abs=1e-12)
    assert rank_correlation(one, np.ones_like(one)) is None


def test_drawing_the_weights_anew_changes_the_copy_alone() -> None:
    network = random_network("cifar10")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    anew = redrawn(network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    again = redrawn(network).state_dict()
    for key, value in anew.state_dict().items():
        assert torch.equal(value, again[key])
        if key.endswith("weight") and "norm" not in key:
            assert abs(np.corrcoef(value.flatten(), before[key].flatten())[0, 1]) < 0.2


@pytest.mark.long
def test_scores_are_in_the_explanation_the_answer_and_the_figure(trained: alexnet.Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    [(_, found)] = trained.explanations([pixels], method=["saliency", "grad_cam"], scores=True)
    assert isinstance(found, Explanation)
    assert list(found.scores) == ["saliency", "grad_cam"]
    given = ("explain", trained.path, tmp_path / "a.png", "--out", tmp_path, "--method", "saliency,grad_cam", "--scores")
    [answer] = json.loads(run(*given, "--json").stdout)
    assert answer["scores"] == {name: each._asdict() for name, each in found.scores.items()}
    with Image.open(answer["figure"]) as image:
        assert image.height > 946
    lines = run(*given).stdout.splitlines()
    assert lines[1].split()[0] == "deletion"
    assert [line.split()[0] for line in lines[2:]] == ["saliency", "grad_cam"]
    [(_, plain)] = trained.explanations([pixels], method="saliency")
    assert isinstance(plain, Explanation)
    assert plain.scores == {}
    np.testing.assert_array_equal(plain.heat_maps["saliency"], found.heat_maps["saliency"])


def test_the_temperature_of_the_run_counts() -> None:
    network, x = random_network("cifar10"), torch.randn(1, 3, 128, 128)
    maps = {"saliency": heat_map("saliency", network, x, 0)}
    with torch.no_grad():
        probability = float((network(x) / 1e6).softmax(1)[0, 0])
    found = score(network, redrawn(network), x, 0, 1, "relu5", 1e6, maps)["saliency"]
    assert found.deletion == pytest.approx(probability, abs=1e-3)
