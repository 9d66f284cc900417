"""What is counted: accuracy with its interval, per-class figures, calibration. NumPy in, plain numbers out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


def log_probabilities(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the log-softmax of logits / temperature, N x classes."""
    result: NDArray[np.float64] = torch.from_numpy(logits.astype(np.float64) / temperature).log_softmax(1).numpy()
    return result


def cross_entropy(logits: Floats, targets: Ints) -> float:
    """Return the mean of -log p(target). `logits` N x classes, `targets` N."""
    return float(-log_probabilities(logits)[np.arange(len(targets)), targets].mean())


def top_k(logits: Floats, targets: Ints, k: int) -> float:
    """Return the share of images whose class is among the `k` largest logits; ties count against it."""
    own = logits[np.arange(len(targets)), targets][:, None]
    return float(((logits >= own).sum(1) <= k).mean())


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share seen in `count` images (Wilson 1927)."""
    z = 1.959964  # of a normal number: 95 % lie within so many deviations
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def most_frequent(per_class: Mapping[str, Mapping[str, Any]]) -> tuple[str, float]:
    """Return the label that most images have, and their share: what always saying it would get right."""
    label = max(per_class, key=lambda label: per_class[label]["images"])
    return label, per_class[label]["images"] / sum(row["images"] for row in per_class.values())


BINS = 15  # of confidence, as in Guo and others 2017
SPREAD = 1.0  # of the logarithm of a temperature: 95 % lie from 1/7 to 7
FURTHEST = 10.0  # the logarithm of what no temperature reaches
TOLD_APART = 3.841459  # 95 % of a chi-square of one degree of freedom lie below


class Reliability(NamedTuple):
    """Images by the probability of the label that they were given, in `BINS` equal bins: one number a bin, 0 in empty ones."""

    images: Ints
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of confidence and accuracy, an image counting once."""
        return float(np.abs(self.accuracy - self.confidence) @ self.images / max(1, self.images.sum()))


def reliability(logits: Floats, targets: Ints, temperature: float = 1.0) -> Reliability:
    """Return how often images that were given their label with some probability got the right one."""
    probabilities = np.exp(log_probabilities(logits, temperature))
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    images = np.bincount(bin_of, minlength=BINS)
    sums = (np.bincount(bin_of, weights=values, minlength=BINS) for values in (confidence, right))
    return Reliability(images, *(total / np.maximum(1, images) for total in sums))


def fit_temperature(logits: Floats, targets: Ints) -> float:
    """Return the T for which softmax(logits / T) has the least cross-entropy (Guo and others 2017), not far from 1.

    The logarithm of T is normal about 0 with a deviation of `SPREAD` beforehand: images that are all right would else have a T
    of 0, and all probabilities be 100 %. It is 1 where the images are too few to tell it from 1: by a likelihood ratio test at
    5 % (Wilks 1938).
    """
    from scipy.optimize import minimize_scalar  # half a second, which most commands need not wait for

    def cost(log_t: float) -> float:  # minus the logarithm of the probability of targets and T together, in nats
        return len(targets) * cross_entropy(logits / np.exp(log_t), targets) + (log_t / SPREAD) ** 2 / 2

    result = minimize_scalar(cost, bounds=(-FURTHEST, FURTHEST), method="bounded")
    return float(np.exp(result.x)) if 2 * (cost(0.0) - result.fun) > TOLD_APART else 1.0


def confusion(predicted: Ints, targets: Ints, classes: int) -> Ints:
    """Return classes x classes counts: rows are the true class, columns the predicted one."""
    return np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def per_class(counts: Ints) -> list[dict[str, Any]]:
    """Return for each class of a confusion matrix its images, precision, recall and F1.

    A class without images has no recall and no F1, one that is never predicted no precision: None.
    """
    right, actual, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    return [
        {
            "images": int(actual[i]),
            "precision": float(right[i] / predicted[i]) if predicted[i] else None,
            "recall": float(right[i] / actual[i]) if actual[i] else None,
            "f1": float(2 * right[i] / (actual[i] + predicted[i])) if actual[i] else None,
        }
        for i in range(len(counts))
    ]
