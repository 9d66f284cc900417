"""How far to believe a heat map: deletion and insertion curves, and a network whose weights are drawn anew.

Deletion makes pixels grey in the order of their heat, insertion puts them into a grey image (Petsiuk and others 2018). A map
that hardly changes when the weights are drawn anew says nothing about what was learned (Adebayo and others 2018).
"""

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from alexnet.explain.methods import heat_map
from alexnet.inference.metrics import log_probabilities
from alexnet.network.alexnet import AlexNet, initialize
from alexnet.network.device import seeded

STEPS = 32  # of a curve
ORDERS = 2  # random ones; they differ little

Probabilities = Callable[[Tensor], NDArray[np.float64]]  # of the label: N 3 I I -> N


class Areas(NamedTuple):
    """Areas under the curves of a label's probability, from 0 to 1: small deletion and large insertion are good."""

    deletion: float
    insertion: float


class Scores(NamedTuple):
    """How far to believe a map.

    Attributes:
        deletion: area under the label's probability while pixels turn grey, the hottest first, from 0 to 1: should be below
            `random_deletion`.
        insertion: the same while they come into a grey image, from 0 to 1: should be above `random_insertion`.
        random_deletion: `deletion` if pixels turn grey in random order.
        random_insertion: `insertion` if pixels come in random order.
        redrawn_correlation: rank correlation over pixels, from -1 to 1, of the sizes of the map with those of the map of
            the same network with random weights: near 0 is good. None if one of the two is the same everywhere.
    """

    deletion: float
    insertion: float
    random_deletion: float
    random_insertion: float
    redrawn_correlation: float | None


def score(
    network: AlexNet,
    anew: AlexNet,
    x: Tensor,
    target: int,
    upscale: int,
    layer: str,
    temperature: float,
    heat: dict[str, NDArray[np.float32]],
) -> dict[str, Scores]:
    """Return the scores of maps by method, each of an input 1 3 I I as for `heat_map`; `anew` is `redrawn(network)`."""

    def probabilities(images: Tensor) -> NDArray[np.float64]:
        with torch.no_grad():
            logits = network(images, upscale).float().cpu().numpy()
        return np.exp(log_probabilities(logits, temperature)[:, target])

    chance = random_areas(probabilities, x)
    result = {}
    for name, values in heat.items():
        correlation = rank_correlation(values, heat_map(name, anew, x, target, upscale, layer))
        result[name] = Scores(*areas(probabilities, x, values), *chance, correlation)
    return result


def areas(probabilities: Probabilities, x: Tensor, heat: NDArray[np.float32]) -> Areas:
    """Return the areas of a map I I for an input 1 3 I I; equal pixels come in random order, the mean of several."""
    found = {order.tobytes(): order for order in (_order(heat, seed) for seed in range(ORDERS))}
    return _mean_areas(probabilities, x, list(found.values()))


def random_areas(probabilities: Probabilities, x: Tensor) -> Areas:
    """Return the areas if the order of pixels is random, the mean of several."""
    nothing = np.zeros(x.shape[2:], np.float32)
    return areas(probabilities, x, nothing)


def _order(heat: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """Return the step, 1 to `STEPS`, in which each pixel has its turn: I I, the hottest first."""
    shuffled = np.random.default_rng(seed).permutation(heat.size)
    hottest_first = shuffled[np.argsort(-heat.ravel()[shuffled], kind="stable")]
    turns = np.empty(heat.size, np.int64)
    turns[hottest_first] = 1 + np.arange(heat.size) * STEPS // heat.size
    return turns.reshape(heat.shape)


def _mean_areas(probabilities: Probabilities, x: Tensor, orders: list[NDArray[np.int64]]) -> Areas:
    curves = np.mean([_curves(probabilities, x, order) for order in orders], 0)
    return Areas(*(float(curve.sum() - (curve[0] + curve[-1]) / 2) / STEPS for curve in curves))  # trapezia


def _curves(probabilities: Probabilities, x: Tensor, order: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the probabilities after 0, 1, … `STEPS` steps of deletion and of insertion: 2 x (STEPS + 1)."""
    steps = torch.arange(STEPS + 1, device=x.device)[:, None, None, None]
    turned = torch.from_numpy(order).to(x.device) <= steps  # N 1 I I
    return np.stack([probabilities(x * ~turned), probabilities(x * turned)])


def redrawn(network: AlexNet) -> AlexNet:
    """Return a copy of a network with all weights drawn anew, the same in each call."""
    copy = deepcopy(network)
    with seeded(network.head.weight.device):
        initialize(copy)
    return copy


def rank_correlation(heat: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Return Spearman's correlation of the sizes of two maps; None if one is the same everywhere."""
    ranks = [rankdata(np.abs(each)) for each in (heat, other)]
    if any(np.ptp(each) == 0 for each in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])
