"""Metrics: accuracy with its interval, per-class metrics, and calibration, from NumPy arrays."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


def log_probabilities(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the log-softmax of logits / temperature, N x classes."""
    return np.asarray(torch.from_numpy(logits.astype(np.float64) / temperature).log_softmax(1))


def cross_entropy(logits: Floats, targets: Ints) -> float:
    """Return the mean of -log p(target). `logits` N x classes, `targets` N."""
    return float(-log_probabilities(logits)[np.arange(len(targets)), targets].mean())


def sigmoid_cross_entropy(logits: Floats, targets: Ints) -> float:
    """Return the mean cross-entropy of a sigmoid for each class, which `train.loss = "binary"` minimises."""
    scores = logits.astype(np.float64)
    return float(np.logaddexp(0, scores).mean() - scores[np.arange(len(targets)), targets].sum() / scores.size)


def top_k(logits: Floats, targets: Ints, k: int) -> float:
    """Return the top-k accuracy; ties with the target's logit count as errors."""
    target_logits = logits[np.arange(len(targets)), targets][:, None]
    return float(((logits >= target_logits).sum(1) <= k).mean())


def wilson_interval(accuracy: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy measured on `count` images (Wilson 1927)."""
    z = 1.959964  # the 97.5th percentile of the normal distribution
    centre = (accuracy + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(accuracy * (1 - accuracy) / count + z * z / (4 * count * count))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def most_frequent(per_class: Mapping[str, Mapping[str, Any]]) -> tuple[str, float]:
    """Return the label of the majority class, and the accuracy of always predicting it."""
    label = max(per_class, key=lambda label: per_class[label]["images"])
    return label, per_class[label]["images"] / sum(row["images"] for row in per_class.values())


BINS = 15  # of confidence, as in Guo and others 2017
PRIOR_STD = 1.0  # of log(temperature): 95 % of the prior lies between 1/7 and 7
LOG_T_BOUND = 10.0  # far outside the prior
CHI_SQUARE_95 = 3.841459  # the 95th percentile for one degree of freedom


class Reliability(NamedTuple):
    """The number of images, their mean confidence and their accuracy in each of `BINS` equal bins of confidence."""

    images: Ints
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """The expected calibration error: the mean difference of confidence and accuracy, weighted by images."""
        return float(np.abs(self.accuracy - self.confidence) @ self.images / max(1, self.images.sum()))


def reliability(logits: Floats, targets: Ints, temperature: float = 1.0) -> Reliability:
    """Return confidence and accuracy by bins, where confidence is the probability of the predicted label."""
    probabilities = np.exp(log_probabilities(logits, temperature))
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == targets
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    images = np.bincount(bin_of, minlength=BINS)
    sums = (np.bincount(bin_of, weights=values, minlength=BINS) for values in (confidence, correct))
    return Reliability(images, *(total / np.maximum(1, images) for total in sums))


def fit_temperature(logits: Floats, targets: Ints) -> float:
    """Return the temperature T that minimises the cross-entropy of softmax(logits / T) (Guo and others 2017).

    A normal prior on log T, with mean 0 and standard deviation `PRIOR_STD`, keeps T above 0 when all predictions are correct.
    If T does not differ significantly from 1, by a likelihood-ratio test at 5 % (Wilks 1938), it is 1.
    """
    from scipy.optimize import minimize_scalar  # importing it takes half a second

    def cost(log_t: float) -> float:  # negative log of the posterior, in nats
        return len(targets) * cross_entropy(logits / np.exp(log_t), targets) + (log_t / PRIOR_STD) ** 2 / 2

    result = minimize_scalar(cost, bounds=(-LOG_T_BOUND, LOG_T_BOUND), method="bounded")
    return float(np.exp(result.x)) if 2 * (cost(0.0) - result.fun) > CHI_SQUARE_95 else 1.0


def confusion(predicted: Ints, targets: Ints, classes: int) -> Ints:
    """Return the confusion matrix, classes x classes counts: rows are true classes, columns predicted ones."""
    return np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def per_class(counts: Ints) -> list[dict[str, Any]]:
    """Return images, precision, recall and F1 of each class of a confusion matrix.

    Recall and F1 of a class without images are None, and so is the precision of a class that is never predicted.
    """
    rows = []
    for correct, actual, predicted in np.stack([counts.diagonal(), counts.sum(1), counts.sum(0)], 1).tolist():
        precision = correct / predicted if predicted else None
        recall = correct / actual if actual else None
        f1 = 2 * correct / (actual + predicted) if actual else None
        rows.append({"images": actual, "precision": precision, "recall": recall, "f1": f1})
    return rows
