"""Two networks on the same images: whether one is better, by how much, and how many images it takes to know."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959964  # the 97.5th percentile of the normal distribution: two-sided tests at 5 %
Z_80 = 0.841621  # the 80th: a power of 80 %
RESAMPLES = 2000


@dataclass(frozen=True)
class Paired:
    """A paired comparison of a network with a first one.

    Attributes:
        images: number of images.
        gained: number of images that this network alone gets right.
        lost: number of images that the first network alone gets right.
        p: p-value of McNemar's test, the probability of a difference at least as large if both were equally good.
        interval: 95 % interval of the difference in accuracy.
        loss_interval: 95 % interval of the difference in mean cross-entropy, in nats.
        needed: number of images with which the test would find a difference of this size four times out of five; None if there
            is none.
    """

    images: int
    gained: int
    lost: int
    p: float
    interval: tuple[float, float]
    loss_interval: tuple[float, float]
    needed: int | None

    def to_json(self) -> dict[str, Any]:
        """Return all figures, intervals as lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def compare_pairs(
    right: NDArray[np.bool_], first: NDArray[np.bool_], losses: NDArray[np.float64], first_losses: NDArray[np.float64]
) -> Paired:
    """Compare the answers of two networks for the same images: which are `right`, and their losses, N each."""
    count, gained, lost = len(right), int((right & ~first).sum()), int((first & ~right).sum())
    intervals = difference_interval(gained, lost, count), bootstrap_interval(losses - first_losses)
    return Paired(count, gained, lost, mcnemar(gained, lost), *intervals, images_needed(gained, lost, count))


def mcnemar(gained: int, lost: int) -> float:
    """Return the mid-p-value of McNemar's test, which keeps to its level better than the exact one (Fagerland and others 2013).

    If both networks are equally good, each image on which they differ is as likely gained as lost.
    """
    from scipy.stats import binom

    fewer, differing = min(gained, lost), gained + lost
    return float(min(1.0, 2 * binom.cdf(fewer, differing, 0.5) - binom.pmf(fewer, differing, 0.5)))


def difference_interval(gained: int, lost: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference in accuracy on the same images (Bonett and Price 2012)."""
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    half = Z_95 * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the mean, by drawing the images anew (Efron 1979); draws are the same every time."""
    random = np.random.default_rng(0)
    means = [values[random.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def images_needed(gained: int, lost: int, count: int) -> int | None:
    """Return with how many images McNemar's test at 5 % finds such a difference with a power of 80 % (Connor 1987)."""
    if gained == lost:
        return None
    differing, difference = (gained + lost) / count, (gained - lost) / count
    root = Z_95 * math.sqrt(differing) + Z_80 * math.sqrt(differing - difference**2)
    return math.ceil((root / difference) ** 2)
