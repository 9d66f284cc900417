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
    # If there are several, the most probable of all classes, as in cleanlab; the paper takes that of the confident ones.
    true = np.where(confident.sum(1) > 1, probabilities.argmax(1), confident.argmax(1))
    counts = np.bincount(targets[rows] * classes + true[rows], minlength=classes**2).reshape(classes, classes).astype(float)
    np.fill_diagonal(counts, np.maximum(1, counts.diagonal()))  # every class has right labels
    shares = counts / counts.sum(1, keepdims=True) * sizes[:, None]
    whole = np.floor(shares).astype(np.int64)
    # The rest of each row goes to the largest remainders; of equal ones to the last, as in cleanlab.
    ranks = np.argsort(np.argsort(shares - whole, axis=1, kind="stable"), axis=1)
    return np.asarray(whole + (ranks >= classes - (sizes - whole.sum(1))[:, None]))


def doubtful(targets: Ints, probabilities: Floats) -> Ints:
    """Return the positions of images whose labels are probably wrong; arguments as `confident_joint`.

    Those whose given class is least probable come first: in `benchmarks/doubts.py`, that order is better than by the margin.
    """
    joint = confident_joint(targets, probabilities)
    chosen = np.zeros(len(targets), dtype=bool)
    for given in range(len(joint)):
        rows = np.flatnonzero(targets == given)
        for true in np.flatnonzero(joint[given]):
            if true != given:
                margins = probabilities[rows, true] - probabilities[rows, given]
                chosen[rows[np.argsort(-margins, kind="stable")[: joint[given, true]]]] = True
    found = np.flatnonzero(chosen & (probabilities.argmax(1) != targets))
    order = np.argsort(probabilities[found, targets[found]], kind="stable")
    return np.asarray(found[order], dtype=np.int64)
