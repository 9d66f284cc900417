"""Confident learning: find wrong labels by out-of-sample probabilities (Northcutt, Jiang and Chuang 2021).

An image counts as one of class j with confidence if its probability of j is at least the mean of those that are labelled j. The
counts of (given label, confident class) estimate how many images labelled i are of class j; so many of them, those with the
largest margin of j over i, are doubtful ("prune by noise rate" in the paper).
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

ROUNDING = 1e-6  # of probabilities, when they are compared with a threshold


def confident_joint(targets: Ints, probabilities: Floats) -> Ints:
    """Estimate the number of images by given and true class, classes x classes, whose rows add up to the given classes' sizes.

    `targets` are the given classes of N images, `probabilities` N x classes, by networks that did not see these images.
    """
    classes = probabilities.shape[1]
    own, sizes = probabilities[np.arange(len(targets)), targets], np.bincount(targets, minlength=classes)
    thresholds = np.bincount(targets, weights=own, minlength=classes) / np.maximum(1, sizes)
    thresholds[sizes == 0] = np.inf
    confident = probabilities >= thresholds - ROUNDING
    rows = confident.any(1)
    true = np.where(confident, probabilities, -1).argmax(1)  # if there are several, the most probable
    counts = np.bincount(targets[rows] * classes + true[rows], minlength=classes**2).reshape(classes, classes).astype(float)
    np.fill_diagonal(counts, np.maximum(1, counts.diagonal()))  # every class has right labels
    shares = counts / counts.sum(1, keepdims=True) * sizes[:, None]
    whole = np.floor(shares).astype(np.int64)
    ranks = np.argsort(np.argsort(whole - shares, axis=1, kind="stable"), axis=1)  # by what was cut off, the most first
    return np.asarray(whole + (ranks < (sizes - whole.sum(1))[:, None]))


def doubtful(targets: Ints, probabilities: Floats) -> Ints:
    """Return the positions of images whose labels are probably wrong, most probably first; arguments as `confident_joint`."""
    joint = confident_joint(targets, probabilities)
    chosen = np.zeros(len(targets), dtype=bool)
    for given in range(len(joint)):
        rows = np.flatnonzero(targets == given)
        for true in np.flatnonzero(joint[given]):
            if true != given:
                margins = probabilities[rows, true] - probabilities[rows, given]
                chosen[rows[np.argsort(-margins, kind="stable")[: joint[given, true]]]] = True
    found = np.flatnonzero(chosen & (probabilities.argmax(1) != targets))
    margins = probabilities[found].max(1) - probabilities[found, targets[found]]
    return np.asarray(found[np.argsort(-margins, kind="stable")], dtype=np.int64)
